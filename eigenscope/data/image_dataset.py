"""In-memory image data set (uint8) that yields whole batches."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eigenscope.data.augmentation import augment_keyed
from eigenscope.data.epoch_sampler import EpochIndex, epochs_and_samples
from eigenscope.noise import random_bits, stream_key


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divides indices so that every class gives the same fraction, rounded, to the second part.

    Args:
        labels: (N,) int64 class of every sample.
        fraction: share of the second part, between 0 and 1.
        seed: of the choice.

    Returns:
        Two sorted int64 index vectors, (N − M,) and (M,), that together hold every index once.

    Raises:
        ValueError: ``fraction`` is not in (0, 1), or leaves a class without a sample in one of the parts.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # by class, random within a class
    counts = labels.bincount()
    counts = counts[counts > 0]
    taken = (counts * fraction).round().long()
    if (taken < 1).any() or (taken >= counts).any():
        raise ValueError(
            f"fraction {fraction} leaves a class empty: the smallest class has {int(counts.min())} samples"
        )
    starts = counts.cumsum(0) - counts
    rank_in_class = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    second = rank_in_class < taken.repeat_interleave(counts)
    return order[~second].sort().values, order[second].sort().values


class LabelledImages(NamedTuple):
    """Images (N, 3, H, W) uint8 and their classes (N,) int64."""

    images: Tensor
    labels: Tensor

    def subset(self, indices: Tensor) -> "LabelledImages":
        """The samples at (M,) int64 ``indices``."""
        return LabelledImages(self.images[indices], self.labels[indices])


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images with values in [0, 1], augmented by random numbers that depend on (seed, epoch, sample) alone.

    A loader asks for a whole batch by :class:`~eigenscope.data.EpochIndex`, so its ``collate_fn`` is the identity. A
    plain integer stands for a sample of epoch 0.

    Args:
        data: images and labels.
        augment: a transform of one uint8 image (3, H, W), or None.
        seed: of the augmentation.
    """

    def __init__(self, data: LabelledImages, augment: Callable[[Tensor], Tensor] | None = None, seed: int = 0) -> None:
        self.data = data
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data.labels)

    def __getitem__(self, key: EpochIndex | int) -> tuple[Tensor, Tensor]:
        """One image (3, H, W) float32 and its class, a scalar int64."""
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: Sequence[EpochIndex | int]) -> tuple[Tensor, Tensor]:
        """A batch: (B, 3, H, W) float32 in [0, 1] and (B,) int64."""
        epochs, samples = epochs_and_samples(keys)
        images, labels = self.data.subset(samples)
        if self.augment is not None:
            seeds = random_bits(stream_key(self.seed), (epochs << 32) + samples, count=1)[:, 0]
            images = augment_keyed(self.augment, images, seeds.tolist())
        return images.float() / 255, labels
