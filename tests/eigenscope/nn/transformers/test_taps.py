import pytest
import torch

from eigenscope.linalg import gram_svd
from eigenscope.nn import SVDTaps, TapConfig, observe, tap_features

KINDS = ["svd", "svd_raw", "gram_diagonal", "pooled", "zeros"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_taps(kind: str = "svd", layers: tuple[int, ...] = (1, 2, 4), rank: int = 8) -> SVDTaps:
    torch.manual_seed(1)
    return SVDTaps(TapConfig(layers, rank, kind), width=24, num_tokens=16, depth=4)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_equals_one_by_one(kind):
    taps = make_taps(kind)
    tokens = [random(5, 16, 24, seed=seed) for seed in range(3)]
    with observe(taps, "projected") as seen:
        features = taps(tokens)
    for i, layer in enumerate(tokens):
        single = layer @ taps.projections[i].T
        part = features[:, 18 * i : 18 * (i + 1)]
        for sample in range(5):
            expected = tap_features(single[sample], kind)
            torch.testing.assert_close(part[sample], expected, atol=1e-5, rtol=1e-5)
        S = gram_svd(seen["projected"], vectors="none").S[i]
        torch.testing.assert_close(S, torch.linalg.svdvals(single), atol=1e-5, rtol=1e-5)


def test_svd_features_against_lapack():
    tokens = random(3, 64, 32).double()
    _, S, Vh = torch.linalg.svd(tokens, full_matrices=False)
    signs = Vh.gather(-1, Vh.abs().argmax(-1, keepdim=True)).sign()
    share = S / S.sum(-1, keepdim=True)
    diagonal = (Vh * signs).diagonal(dim1=-2, dim2=-1)
    off_diagonal = Vh.square().sum((-2, -1)) - diagonal.square().sum(-1)
    entropy = -(share * share.log()).sum(-1)
    expected = torch.cat([share, diagonal, off_diagonal[:, None], entropy[:, None]], -1)
    torch.testing.assert_close(tap_features(tokens, "svd"), expected, atol=1e-9, rtol=1e-9)


def test_fp32_and_fp64_agree_where_gaps_are_wide():
    tokens = random(256, 64, 32)
    single, double = tap_features(tokens, "svd"), tap_features(tokens.double(), "svd")
    S = torch.linalg.svdvals(tokens.double())
    gaps = -S.diff(dim=-1)
    infinite = torch.full_like(gaps[:, :1], torch.inf)
    gap = torch.minimum(torch.cat([infinite, gaps], -1), torch.cat([gaps, infinite], -1))
    wide = torch.cat([torch.ones_like(gap), gap, torch.ones(256, 2)], -1) > 1e-3
    assert wide[:, 32:64].float().mean() > 0.98
    # an off-diagonal energy holds every vector of its matrix
    wide[:, 64] = (gap > 1e-3).all(-1)
    assert (single - double)[wide].abs().max() < 1e-3


def test_raw_signs_are_the_solvers_and_fixed_signs_are_not():
    tokens = random(256, 64, 32)
    raw = (tap_features(tokens, "svd_raw") - tap_features(tokens.double(), "svd_raw"))[:, 32:64].abs()
    fixed = (tap_features(tokens, "svd") - tap_features(tokens.double(), "svd"))[:, 32:64].abs()
    assert (raw > 1e-2).float().mean() > 10 * (fixed > 1e-2).float().mean()
    torch.testing.assert_close(
        tap_features(tokens, "svd_raw")[:, 32:64].abs(), tap_features(tokens, "svd")[:, 32:64].abs()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_tokens_changes_nothing(kind):
    tokens = random(4, 64, 32).double()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(tap_features(tokens[:, order], kind), tap_features(tokens, kind), atol=1e-9, rtol=0)


def test_closed_forms_of_the_controls():
    tokens = random(3, 16, 4)
    pooled = tap_features(tokens, "pooled")
    torch.testing.assert_close(pooled[:, :4], tokens.mean(1))
    torch.testing.assert_close(pooled[:, 4:8], tokens.var(1, correction=0).sqrt())
    norms = (tokens.mT @ tokens).diagonal(dim1=-2, dim2=-1).sqrt()
    shares = norms / norms.sum(-1, keepdim=True)
    diagonal = tap_features(tokens, "gram_diagonal")
    torch.testing.assert_close(diagonal[:, :4], shares)
    torch.testing.assert_close(diagonal[:, -1], -(shares * shares.log()).sum(-1))
    assert (diagonal[:, 4:-1] == 0).all()
    assert (pooled[:, 8:] == 0).all()
    assert (tap_features(tokens, "zeros") == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, 1e30])
def test_always_finite(kind, value):
    tokens = random(2, 16, 8)
    tokens[0] = value
    features = tap_features(tokens, kind)
    assert features.shape == (2, 18)
    assert features.isfinite().all()
    torch.testing.assert_close(features[1], tap_features(tokens[1], kind))


def test_no_gradient_and_no_autocast():
    taps = make_taps()
    tokens = [random(2, 16, 24, seed=seed).requires_grad_() for seed in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = taps(tokens)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(features, taps(tokens))
    assert not taps.projections.requires_grad


def test_too_few_tokens_and_unknown_kinds():
    with pytest.raises(ValueError, match=r"N ≥ k for kind 'svd', got shape \(2, 4, 8\)"):
        tap_features(random(2, 4, 8), "svd")
    with pytest.raises(ValueError, match="kind must be one of svd, svd_raw"):
        tap_features(random(2, 8, 4), "spectrum")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"layers": ()}, "taps.layers"),
        ({"layers": (0, 3)}, "taps.layers"),
        ({"layers": (3, 3)}, "taps.layers"),
        ({"layers": (6, 3)}, "taps.layers"),
        ({"layers": (3,), "rank": 0}, "taps.rank"),
        ({"layers": (3,), "features": "spectrum"}, "taps.features must be one of svd, svd_raw"),
    ],
)
def test_bad_config(arguments, word):
    with pytest.raises(ValueError, match=word):
        TapConfig(**arguments)
