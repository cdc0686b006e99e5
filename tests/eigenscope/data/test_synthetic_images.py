"""The synthetic data set: samples depend on (seed, split, index) alone, and the classes can be told apart."""

import math

import pytest
import torch
from torch import Tensor

from eigenscope.data.synthetic_images import (
    CLASSES_PER_GROUP,
    NUM_CLASSES,
    NUM_GROUPS,
    draw_images,
    silhouette_radius,
)


def _images(*indices: int, seed: int = 0, split: str = "train", image_size: int = 32) -> Tensor:
    return draw_images(seed, split, torch.tensor(indices), image_size)[0]


@pytest.mark.parametrize("image_size", [16, 17, 32, 50])
def test_shapes_dtypes_and_labels(image_size: int) -> None:
    images, labels = draw_images(3, "test", torch.arange(5, 209, 7), image_size)
    assert images.shape == (30, 3, image_size, image_size)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.arange(5, 209, 7) % 100)


def test_labels_are_balanced() -> None:
    assert NUM_CLASSES == NUM_GROUPS * CLASSES_PER_GROUP == 100
    labels = draw_images(0, "train", torch.arange(400), 16)[1]
    assert torch.equal(torch.bincount(labels), torch.full((NUM_CLASSES,), 4))


@pytest.mark.parametrize("image_size", [17, 32])  # 289 pixels leave a tail in every vectorised loop
def test_a_sample_does_not_depend_on_its_batch(image_size: int) -> None:
    # 280 samples of 32 x 32 pixels are more than one chunk
    indices = torch.arange(280) * 37 + 11
    batch, labels = draw_images(5, "train", indices, image_size)
    for row in (0, 7, 255, 256, 279):
        alone, label = draw_images(5, "train", indices[row : row + 1], image_size)
        assert torch.equal(alone[0], batch[row])
        assert int(label) == int(labels[row])
    order = torch.randperm(280, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_images(5, "train", indices[order], image_size)[0], batch[order])
    thirds = [draw_images(5, "train", part, image_size)[0] for part in indices.chunk(3)]
    assert torch.equal(torch.cat(thirds), batch)


def test_a_sample_does_not_depend_on_the_number_of_threads() -> None:
    indices, threads = torch.arange(301), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw_images(0, "train", indices, 23)[0]
        torch.set_num_threads(3)
        three = draw_images(0, "train", indices, 23)[0]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, three)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first = _images(1, 2, 3)
    torch.manual_seed(99)
    assert torch.equal(_images(1, 2, 3), first)
    torch.set_rng_state(state)
    _images(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_split_and_index_each_change_the_picture() -> None:
    # indices 100 apart share their class, so what differs is the sample
    pictures = [_images(12), _images(112), _images(12, seed=1), _images(12, split="test"), _images(12, seed=-1)]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert (first.float() - second.float()).abs().mean() > 10


def test_integer_dtypes_and_empty_batches() -> None:
    wide = draw_images(0, "train", torch.arange(3))
    narrow = draw_images(0, "train", torch.arange(3, dtype=torch.uint8))
    assert torch.equal(wide[0], narrow[0])
    assert torch.equal(wide[1], narrow[1])
    images, labels = draw_images(0, "train", torch.arange(0))
    assert images.shape == (0, 3, 32, 32)
    assert labels.shape == (0,)


def test_wrong_arguments_are_named() -> None:
    indices = torch.arange(2)
    with pytest.raises(ValueError, match=r'split is .val.*"train" or "test"'):
        draw_images(0, "val", indices)
    with pytest.raises(ValueError, match=r"image_size is 15.*at least 16"):
        draw_images(0, "train", indices, 15)
    with pytest.raises(ValueError, match=r"indices is \(1, 2\)"):
        draw_images(0, "train", indices[None])
    with pytest.raises(ValueError, match=r"indices is .*torch.float32.*integer"):
        draw_images(0, "train", indices.float())
    with pytest.raises(ValueError, match="indices holds -3"):
        draw_images(0, "train", torch.tensor([4, -3]))


def _outline(group: int, points: int) -> Tensor:
    steps = [2 * math.pi * k / points for k in range(points)]
    return torch.tensor([silhouette_radius(group, angle) for angle in steps], dtype=torch.float64)


@pytest.mark.parametrize("group", range(NUM_GROUPS))
def test_every_silhouette_has_the_area_of_the_unit_disc(group: int) -> None:
    radii = _outline(group, 2000)
    # the area is half the integral of r^2
    assert float(radii.square().mean()) == pytest.approx(1.0, abs=2e-3)
    assert radii.min() > 0.2


def test_silhouettes_of_known_form() -> None:
    angles = torch.arange(96, dtype=torch.float64) * (2 * math.pi / 96)
    torch.testing.assert_close(_outline(0, 96), torch.ones_like(angles))
    # an ellipse of area pi, twice as wide as high
    ellipse = (angles.cos() ** 2 / 2 + angles.sin() ** 2 * 2).rsqrt()
    torch.testing.assert_close(_outline(2, 96), ellipse, rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="group is 20"):
        silhouette_radius(20, 0.0)


def test_no_two_silhouettes_agree() -> None:
    curves = torch.stack([_outline(group, 360) for group in range(NUM_GROUPS)])
    gaps = (curves[:, None] - curves).abs().amax(2)
    alike = [(i, j) for i in range(NUM_GROUPS) for j in range(i) if gaps[i, j] < 0.05]
    assert alike == [(1, 0), (5, 4)]  # ring and frame differ from disc and box by their hole


def test_fills_differ_in_how_much_neighbours_differ() -> None:
    images, labels = draw_images(0, "train", torch.arange(1000))
    # the object lies in the middle, where neighbouring pixels of a plain one agree but for the noise
    middle = images[:, :, 8:24, 8:24].float()
    rough = middle.diff(dim=3).abs().mean((1, 2, 3)) + middle.diff(dim=2).abs().mean((1, 2, 3))
    by_fill = torch.stack([rough[labels % CLASSES_PER_GROUP == fill].mean() for fill in range(CLASSES_PER_GROUP)])
    assert (by_fill[1:] > 1.25 * by_fill[0]).all()
    assert by_fill.argmax() == 2  # a checkerboard has the most edges


def test_plain_objects_have_their_groups_favourite_hue() -> None:
    indices = torch.arange(0, 4000, CLASSES_PER_GROUP)
    centres = draw_images(0, "train", indices)[0][:, :, 14:18, 14:18].float().mean((2, 3))
    by_group = centres.reshape(-1, NUM_GROUPS, 3).mean(0)
    # group g stands at 0.35 g turns around the colour circle, on which red, green and blue are a third apart
    assert by_group[[0, 1, 2, 3]].argmax(1).tolist() == [0, 1, 2, 0]
