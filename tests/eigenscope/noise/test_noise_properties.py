import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eigenscope.noise import NOISE_TYPES, Curriculum, battery_mixtures, draw_noise, random_bits, stream_key, uniform
from eigenscope.noise.streams import Streams

KEYS = st.integers(-(2**80), 2**80)
INDICES = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
WORD, GAMMA = 2**64, 0x9E3779B97F4A7C15
LARGEST = {
    "uniform": 1,
    "symmetric": 1,
    "signs": 1,
    "normal": 6.56,
    "exponential": 21.5,
    "laplace": 21.5,
    "cauchy": 1.4e9,
}


def mixed(word):
    """SplitMix64's finaliser in Python's integers."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


@given(st.lists(KEYS, max_size=3), INDICES, st.integers(0, 5))
def test_streams_are_splitmix64_of_any_integers(parts, indices, count):
    key = 0
    for part in parts:
        key = mixed((key + GAMMA + mixed((part + GAMMA) % WORD)) % WORD)
    assert stream_key(*parts) % WORD == key
    assert stream_key(*(part % WORD for part in parts)) == stream_key(*parts)
    bits = random_bits(stream_key(*parts), torch.tensor(indices, dtype=torch.int64), count)
    assert bits.shape == (len(indices), count)
    for index, row in zip(indices, bits.tolist(), strict=True):
        start = mixed(mixed(index % WORD) ^ key)
        assert [word % WORD for word in row] == [mixed((start + GAMMA * i) % WORD) for i in range(1, count + 1)]
    numbers = uniform(stream_key(*parts), torch.tensor(indices, dtype=torch.int64), count)
    exact = [[(word % WORD // 2**41 + 0.5) / 2**23 for word in row] for row in bits.tolist()]
    assert numbers.tolist() == exact
    assert ((numbers > 0) & (numbers < 1)).all()


def test_parts_of_a_key_are_integers_of_any_kind():
    assert stream_key(np.int64(2**62), True, torch.tensor(-5)) == stream_key(2**62, 1, -5)
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        stream_key(5.5)


@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize("word", [0, -1, -(2**63), 2**63 - 1, 0x7FFFFFFF7FFFFFFF, 0x0000000100000001])
def test_no_word_leads_out_of_the_range(name, word, monkeypatch):
    monkeypatch.setattr(Streams, "bits", lambda self, count: torch.full((len(self), count), word))
    numbers = getattr(Streams(0, torch.arange(3)), name)(9)
    assert numbers.dtype == torch.float32
    assert numbers.abs().max() <= LARGEST[name]
    assert name not in ("uniform", "symmetric") or numbers.abs().max() < 1


@given(
    st.lists(st.integers(0, 15), max_size=4),
    KEYS,
    st.integers(-(2**63), 2**63 - 1),
    st.integers(2, 9),
    st.sampled_from((None, 1e-45, 0.5, 4.0, 1e38, float("inf"))),
    st.sampled_from((torch.float16, torch.bfloat16, torch.float64)),
    st.data(),
)
def test_images_do_not_depend_on_defaults_and_are_finite(types, seed, epoch, size, clamp, default, data):
    samples = torch.tensor(
        data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(types), max_size=len(types)))
    )
    options = {"seed": seed, "epoch": epoch, "samples": samples.long(), "image_size": size, "clamp": clamp}
    kinds = torch.tensor(types, dtype=torch.int64)
    images = draw_noise(kinds, **options)
    assert images.dtype == torch.float32
    assert images.shape == (len(types), 3, size, size)
    assert images.isfinite().all()
    if clamp is not None and images.numel():
        assert images.abs().max() <= torch.tensor(clamp)
    torch.set_default_dtype(default)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(draw_noise(kinds, **options), images)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("normal", stats.norm),
        ("exponential", stats.expon),
        ("laplace", stats.laplace),
        ("cauchy", stats.cauchy),
        ("uniform", stats.uniform),
        ("symmetric", stats.uniform(-1, 2)),
    ],
)
def test_tails_are_those_of_the_law(name, law):
    numbers = getattr(Streams(stream_key(11), torch.arange(500)), name)(4000).double().flatten()
    for share in (1e-5, 1e-4, 1e-2, 0.3, 0.5, 0.7, 1 - 1e-2, 1 - 1e-4, 1 - 1e-5):
        expected = len(numbers) * share
        assert abs((numbers < law.ppf(share)).sum() - expected) < 5 * (expected * (1 - share)) ** 0.5 + 1


@given(st.lists(st.integers(0, 2**62), min_size=0, max_size=15), st.integers(-1, 2**63 - 1))
def test_a_curriculum_is_a_step_function_of_the_epoch(epochs, epoch):
    epochs = sorted(epochs)
    tiers = [[name] for name in NOISE_TYPES[: len(epochs) + 1]]
    unlocked = Curriculum(epochs=epochs, tiers=tiers).types_at(epoch)
    assert len(unlocked) == (epoch >= 0) + sum(at <= epoch for at in epochs)


@pytest.mark.parametrize(
    ("epochs", "tiers", "words"),
    [
        ([0.5], [[0], [1]], "whole numbers below"),
        ([float("nan")], [[0], [1]], "whole numbers below"),
        ([2**63 - 1], [[0], [1]], "whole numbers below"),
        ([], [], "tiers of a curriculum must be non-empty"),
    ],
)
def test_what_is_no_curriculum(epochs, tiers, words):
    with pytest.raises(ValueError, match=words):
        Curriculum(epochs=epochs, tiers=tiers)


@given(
    st.integers(1, 40), st.lists(st.sampled_from(("singles", "pairs", "quads", "all")), min_size=1, max_size=3), KEYS
)
def test_mixtures_of_few_types(count, kinds, seed):
    types = range(4)
    mixtures = battery_mixtures(count, kinds, seed, types)
    sizes = {"singles": 1, "pairs": 2, "quads": 4, "all": 4}
    assert [len(mixture) for mixture in mixtures] == [sizes[kinds[i % len(kinds)]] for i in range(count)]
    assert all(list(mixture) == sorted(set(mixture)) for mixture in mixtures)
    assert battery_mixtures(count + 1, kinds, seed, types)[:count] == mixtures
