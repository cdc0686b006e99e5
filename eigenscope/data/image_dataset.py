"""Labelled uint8 images in memory as a data set that yields whole batches."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from eigenscope.data.augmentation import augment_keyed
from eigenscope.data.epoch_sampler import EpochIndex, epochs_and_samples
from eigenscope.noise import random_bits, stream_key


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
