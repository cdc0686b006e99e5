import math

import pytest
import torch
from scipy import integrate, stats

from eigenscope.noise import CURRICULUM_TIERS, NOISE_TYPES, draw_noise, noise_ids
from eigenscope.noise.distributions import NOISE_DISTRIBUTIONS
from eigenscope.noise.streams import Streams, stream_key


def draw(name, count, image_size, clamp=None, seed=0):
    types = torch.full((count,), NOISE_TYPES.index(name))
    return draw_noise(types, seed=seed, epoch=0, samples=torch.arange(count), image_size=image_size, clamp=clamp)


def clamped_square(density, limit, low=-math.inf):
    bounds = [max(low, -limit), limit]
    inside = integrate.quad(lambda x: x * x * density(x), *bounds)[0]
    return inside + limit**2 * (1 - integrate.quad(density, *bounds)[0])


def poisson_square(limit):
    def at(rate):
        count = range(100)
        return sum(min(k / rate - 1, limit) ** 2 * stats.poisson.pmf(k, rate) for k in count)

    return integrate.quad(at, 0.5, 20, limit=20, epsabs=1e-4)[0] / 19.5


RAMP = 0.25 + 4 / 3 * (8 + 1) / (8 - 1)
MEAN_SQUARES = {  # at size 8: unclamped, clamped at 4
    "gaussian": (1, 1),
    "uniform": (1 / 3, 1 / 3),
    "uniform_scaled": (4 / 3, 4 / 3),
    "poisson": (math.log(40) / 19.5, poisson_square(4)),
    "pink": (1, 1),
    "brown": (1, 1),
    "salt_pepper": (4.01, 4.01),
    "sparse": (0.9, 0.1 * clamped_square(stats.norm(scale=3).pdf, 4)),
    "block": (1, 1),
    "gradient": (RAMP, RAMP),
    "checkerboard": (1.09, 1.09),
    "mixed": (0.28 + 0.28 / 3, 0.28 + 0.28 / 3),
    "structural": ((1 + 1 / 3 + 1 / 4 + 1) / 4,) * 2,
    "cauchy": (None, clamped_square(stats.cauchy.pdf, 3)),
    "exponential": (1, clamped_square(lambda x: math.exp(-x - 1), 4, low=-1)),
    "laplace": (2, 2 * (1 - 5 * math.exp(-4))),
}


@pytest.mark.parametrize("name", NOISE_TYPES)
def test_mean_squares(name):
    for clamp, expected in zip((None, 4.0), MEAN_SQUARES[name], strict=True):
        if expected is not None:
            assert draw(name, 20_000, 8, clamp).double().square().mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", NOISE_TYPES)
def test_means_are_zero_and_signs_balanced(name):
    images = draw(name, 20_000, 8, clamp=4.0).double()
    deviation = images.mean((1, 2, 3)).std()
    assert images.mean().abs() < 5 * deviation / 20_000**0.5 + (1e-2 if name == "exponential" else 1e-3)  # the clamp


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("gaussian", stats.norm()),
        ("uniform", stats.uniform(-1, 2)),
        ("uniform_scaled", stats.uniform(-2, 4)),
        ("exponential", stats.expon(-1)),
        ("laplace", stats.laplace()),
        ("cauchy", stats.cauchy()),
    ],
)
def test_marginal_laws(name, law):
    numbers = draw(name, 20, 64).double().flatten()
    assert stats.kstest(numbers, law.cdf).pvalue > 1e-3
    far = law.ppf([1e-4, 1e-3, 1 - 1e-3, 1 - 1e-4])
    below = (numbers[:, None] < torch.from_numpy(far)).double().mean(0)
    expected = torch.tensor([1e-4, 1e-3, 1 - 1e-3, 1 - 1e-4], dtype=torch.float64)
    assert (below - expected).abs().div((expected * (1 - expected) / len(numbers)).sqrt()).max() < 5


def rates_of(images):
    """The rate of a Poisson image is one over the distance between neighbouring values."""
    return torch.stack([1 / image.double().unique().diff().median() for image in images])


def test_poisson_counts():
    images = draw("poisson", 12, 128)
    for image, rate in zip(images.double(), rates_of(images).tolist(), strict=True):
        counts = (image + 1) * rate
        assert (counts - counts.round()).abs().max() < 1e-3
        observed = counts.round().long().flatten().bincount(minlength=64)[:64]
        expected = torch.from_numpy(stats.poisson.pmf(range(64), rate)) * counts.numel()
        rare = expected < 5
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        chi_square = ((observed - expected) ** 2 / expected.clamp(min=1)).sum()
        assert stats.chi2.sf(chi_square, len(expected) - 1) > 1e-4


def test_poisson_rates_are_uniform():
    assert stats.kstest(rates_of(draw("poisson", 1000, 24)), stats.uniform(0.5, 19.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("name", "exponent"), [("pink", 1), ("brown", 2)])
@pytest.mark.parametrize("size", [32, 33])
def test_spectra_fall_with_the_radial_frequency(name, exponent, size):
    images = draw(name, 1500, size).double()
    assert images.mean((-2, -1)).abs().max() < 1e-5
    assert images.std((-2, -1)).min() > 0.5
    power = torch.fft.rfft2(images).abs().square().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(size, 1 / size)[:, None], torch.fft.rfftfreq(size, 1 / size)).double()
    seen = frequency >= 4  # dividing by the deviation bends the lowest frequencies
    flat = (power * frequency ** (2 * exponent))[seen]
    slope = torch.linalg.lstsq(
        torch.stack([frequency[seen].log(), torch.ones_like(flat)], 1), power[seen].log()[:, None]
    ).solution[0]
    assert slope.item() == pytest.approx(-2 * exponent, abs=0.03)
    assert (flat / flat.mean() - 1).abs().max() < 0.15  # the real columns and rows as well


def test_block_is_constant_on_blocks_of_2_to_15():
    images = draw("block", 400, 64)
    steps = (images.diff(dim=-1) != 0).any(2).any(1)
    firsts = 1 + steps.int().argmax(1)
    assert set(firsts.tolist()) == set(range(2, 16))
    for side, image in zip(firsts.tolist(), images, strict=True):
        assert torch.equal(
            image[:, ::side, ::side].repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :64, :64], image
        )


def test_checkerboard_cells():
    boards = draw("checkerboard", 400, 64).mean(1).sign()  # a channel errs once in 2000 pixels, the mean never
    for axis in (1, 2):
        runs = torch.stack([(board.diff(dim=axis - 1) != 0).any(2 - axis) for board in boards])
        places = [run.nonzero()[:, 0] for run in runs]
        sides = [place.diff().unique() for place in places]
        assert all(len(side) == 1 for side in sides)
        assert {side.item() for side in sides} == set(range(2, 16))
        assert len({(place[0] % side).item() for place, side in zip(places, sides, strict=True) if side == 13}) > 6


def test_gradient_is_a_ramp_of_two_at_any_angle():
    images = draw("gradient", 500, 64).double().mean(1)
    x = torch.linspace(-1, 1, 64, dtype=torch.float64)
    along = torch.stack([(images * x).mean((1, 2)), (images * x[:, None]).mean((1, 2))], 1) / x.square().mean()
    assert (along.norm(dim=1) - 2).abs().max() < 0.1
    assert stats.kstest(torch.atan2(along[:, 1], along[:, 0]), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [2, 3, 32, 33])
def test_structural_quadrants(size):
    images = draw("structural", 300, size)
    h = size // 2
    assert images[:, :, :h, :h].square().mean() == pytest.approx(1, abs=0.1)
    assert images[:, :, :h, h:].abs().max() < 1
    assert images[:, :, :h, h:].square().mean() == pytest.approx(1 / 3, abs=0.03)
    assert images[:, :, h:, :h].square().mean() == pytest.approx(0.25 if size > 2 else 0, abs=1e-3)
    assert set(images[:, :, h:, h:].unique().tolist()) == {-1, 1}


def test_sparse_and_salt_pepper():
    assert (draw("sparse", 50, 64) != 0).double().mean() == pytest.approx(0.1, abs=0.003)
    salt = draw("salt_pepper", 50, 64)
    assert (salt - 2 * salt.sign()).std() == pytest.approx(0.1, rel=0.02)
    assert (salt > 0).double().mean() == pytest.approx(0.5, abs=0.005)


def test_the_clamp_limits_cauchy_to_three_quarters():
    for name in NOISE_TYPES:
        assert draw(name, 20, 64, clamp=4.0).abs().max() <= (3 if name == "cauchy" else 4)
    assert draw("cauchy", 20, 64, clamp=1.0).abs().max() == 0.75
    free, clamped = draw("laplace", 20, 64), draw("laplace", 20, 64, clamp=2.0)
    assert free.abs().max() > 8
    assert torch.equal(free.clamp(-2, 2), clamped)


@pytest.mark.parametrize("name", ["poisson", "sparse", "cauchy", "exponential", "laplace"])
def test_ten_million_unclamped_draws_are_finite(name):
    for seed in range(2):
        assert draw(name, 420, 64, seed=seed).isfinite().all()


@pytest.mark.parametrize("word", [0, -1, 1, -(2**63), 2**63 - 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF])
def test_extreme_words_give_finite_images(word, monkeypatch):
    monkeypatch.setattr(Streams, "bits", lambda self, count: torch.full((len(self), count), word))
    streams = Streams(stream_key(0), torch.arange(2))
    for law in NOISE_DISTRIBUTIONS.values():
        for size in (2, 5, 16):
            images = law.draw(streams, streams.uniform(law.parameters), size)
            assert images.shape == (2, 3, size, size)
            assert images.isfinite().all()


def test_tiers_hold_every_type_once():
    assert sorted(i for tier in CURRICULUM_TIERS for i in tier) == list(range(len(NOISE_TYPES))) == list(range(16))


def test_noise_ids():
    assert noise_ids(["laplace", 3, "gaussian"]) == (15, 3, 0)
    assert noise_ids(NOISE_TYPES) == tuple(range(16))
    for unknown in ("white", 16, -1):
        with pytest.raises(ValueError, match=rf"{unknown}.*gaussian, uniform, .*laplace"):
            noise_ids(["pink", unknown])
