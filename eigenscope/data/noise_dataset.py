"""Noise data set: heavy-tailed noise images, drawn on access."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eigenscope.data.epoch_sampler import EpochIndex, epochs_and_samples
from eigenscope.noise import Curriculum, draw_noise


class NoiseDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images of noise and the id of their type; sample i of an epoch is of the (i mod n)-th of its n types.

    Like :class:`~eigenscope.data.ImageDataset` it yields whole batches, and a sample depends on (seed, epoch, index)
    alone. A *fixed* set is the same in every epoch, and then image i // n of a type is the same for any n.

    Args:
        size: images in an epoch.
        types: the ids of the types, or the curriculum that says which there are in an epoch.
        image_size: side in pixels.
        seed: of the images.
        fixed: the same images in every epoch.
        clamp: see :func:`eigenscope.noise.draw_noise`.
    """

    def __init__(
        self,
        size: int,
        types: Sequence[int] | Curriculum,
        image_size: int,
        *,
        seed: int,
        fixed: bool,
        clamp: float | None,
    ) -> None:
        self.size = size
        self.types = types
        self.image_size = image_size
        self.seed = seed
        self.fixed = fixed
        self.clamp = clamp

    def __len__(self) -> int:
        """Number of images in an epoch."""
        return self.size

    def __getitem__(self, key: EpochIndex | int) -> tuple[Tensor, Tensor]:
        """One image (3, s, s) float32 and the id of its type, a scalar int64."""
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: Sequence[EpochIndex | int]) -> tuple[Tensor, Tensor]:
        """A batch of one epoch: (B, 3, s, s) float32 and (B,) int64."""
        epochs, samples = epochs_and_samples(keys)
        epoch = int(epochs[0])
        open_ = self.types.types_at(epoch) if isinstance(self.types, Curriculum) else self.types
        types = torch.tensor(open_, dtype=torch.int64)
        labels = types[samples % len(types)]
        if self.fixed:
            epoch, samples = 0, samples // len(types)
        images = draw_noise(
            labels, seed=self.seed, epoch=epoch, samples=samples, image_size=self.image_size, clamp=self.clamp
        )
        return images, labels
