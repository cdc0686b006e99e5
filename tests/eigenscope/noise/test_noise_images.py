import pytest
import torch

from eigenscope.noise import NOISE_TYPES, draw_noise

TYPES = torch.arange(len(NOISE_TYPES))
WHITE = [
    NOISE_TYPES.index(n) for n in ("gaussian", "uniform", "salt_pepper", "sparse", "exponential", "laplace", "cauchy")
]


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("size", [2, 7, 32, 64])
def test_a_sample_is_the_same_to_the_bit_in_any_batch(size):
    count = 640
    generator = torch.Generator().manual_seed(1)
    types = TYPES.repeat(count // 16)
    samples = torch.randint(-(2**40), 2**40, (count,), generator=generator)
    epochs = torch.randint(0, 50, (count,), generator=generator)
    whole = draw_noise(types, seed=5, epoch=epochs, samples=samples, image_size=size)
    order = torch.randperm(count, generator=generator)
    mixed = draw_noise(types[order], seed=5, epoch=epochs[order], samples=samples[order], image_size=size)
    assert same_bits(mixed, whole[order])
    for part in order[:300].split([1] * 40 + [3] * 20 + [50, 150]):
        drawn = draw_noise(types[part], seed=5, epoch=epochs[part], samples=samples[part], image_size=size)
        assert same_bits(drawn, whole[part])


@pytest.mark.parametrize("noise_type", TYPES.tolist())
def test_a_sample_does_not_depend_on_its_place_in_a_large_batch_of_its_type(noise_type):
    samples = torch.arange(67)
    whole = draw_noise(torch.full((67,), noise_type), seed=0, epoch=3, samples=samples, image_size=33)
    for first in (1, 15, 16, 40):
        part = samples[first:]
        drawn = draw_noise(torch.full((len(part),), noise_type), seed=0, epoch=3, samples=part, image_size=33)
        assert same_bits(drawn, whole[first:])


@pytest.mark.parametrize("image_size", [16, 33, 64])
@pytest.mark.parametrize("noise_type", TYPES.tolist(), ids=NOISE_TYPES)
def test_the_number_of_threads_makes_no_difference(noise_type, image_size):
    before = torch.get_num_threads()
    arguments = {"seed": 0, "epoch": 0, "samples": torch.arange(96), "image_size": image_size}
    drawn = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            drawn.append(draw_noise(torch.full((96,), noise_type), **arguments))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(drawn[0], other) for other in drawn[1:])


def test_one_epoch_stands_for_all_samples():
    arguments = {"seed": 1, "samples": TYPES, "image_size": 8}
    many = draw_noise(TYPES, epoch=torch.full((16,), 7), **arguments)
    assert same_bits(draw_noise(TYPES, epoch=7, **arguments), many)


def test_samples_epochs_seeds_sizes_and_types_are_unrelated():
    gaussian = torch.zeros(40, dtype=torch.int64)
    far = torch.cat([torch.arange(-10, 10), (torch.arange(1, 21) << 32)])
    rows = [draw_noise(gaussian, seed=0, epoch=0, samples=far, image_size=32)]
    for seed, epoch in [(0, 1), (0, 1 << 32), (1, 0), (-1, 0)]:
        rows.append(draw_noise(gaussian, seed=seed, epoch=epoch, samples=far, image_size=32))
    rows.append(draw_noise(gaussian[:16], seed=0, epoch=0, samples=far[:16], image_size=64)[:, :, :32, :32])
    for noise_type in WHITE[1:]:
        same = torch.full((40,), noise_type)
        rows.append(draw_noise(same, seed=0, epoch=0, samples=far, image_size=32, clamp=4.0))
    numbers = torch.cat(rows).flatten(1).double()
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 5.5 / numbers.shape[1] ** 0.5
    sizes = torch.corrcoef(numbers.abs()).fill_diagonal_(0)
    assert sizes[sizes.isfinite()].abs().max() < 5.5 / numbers.shape[1] ** 0.5


@pytest.mark.parametrize("noise_type", WHITE)
def test_neighbouring_pixels_and_channels_are_unrelated(noise_type):
    images = draw_noise(
        torch.full((60,), noise_type), seed=2, epoch=0, samples=torch.arange(60), image_size=64, clamp=4.0
    ).double()
    for values in (images, images.abs()):
        flat = values.flatten(1)
        for lag in (1, 2, 3, 64, 4096, 6144):
            pair = torch.stack([flat[:, :-lag].flatten(), flat[:, lag:].flatten()])
            assert torch.corrcoef(pair)[0, 1].abs() < 5 / pair.shape[1] ** 0.5


def test_shapes():
    for size in (2, 3, 5):
        images = draw_noise(TYPES, seed=0, epoch=0, samples=TYPES, image_size=size)
        assert images.shape == (16, 3, size, size)
        assert images.dtype == torch.float32
        assert images.isfinite().all()
    none = torch.zeros(0, dtype=torch.int64)
    assert draw_noise(none, seed=0, epoch=0, samples=none, image_size=4).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clamp": 0.0}, "clamp is 0.0"),
        ({"clamp": float("nan")}, "clamp is nan"),
        ({"image_size": 1}, "image_size is 1"),
        ({"types": torch.tensor([0, 16])}, "types holds 16"),
        ({"types": torch.tensor([0, -1])}, "types holds -1"),
        ({"types": torch.tensor([0])}, r"types is \(1,\)"),
        ({"types": torch.tensor([0.0, 1.0])}, "types is .*float32"),
        ({"samples": torch.zeros(2)}, "samples is .*float32"),
        ({"samples": torch.zeros(2, 1, dtype=torch.int64)}, r"samples is \(2, 1\)"),
        ({"epoch": torch.zeros(3, dtype=torch.int64)}, r"epoch is \(3,\)"),
    ],
)
def test_wrong_input_is_refused(wrong, message):
    right = {
        "types": torch.zeros(2, dtype=torch.int64),
        "seed": 0,
        "epoch": 0,
        "samples": torch.arange(2),
        "image_size": 4,
    }
    with pytest.raises(ValueError, match=message):
        draw_noise(**right | wrong)
