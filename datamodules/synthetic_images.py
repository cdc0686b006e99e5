"""Built-in synthetic images: a data module of procedurally drawn classes that needs no download."""

from typing import Any, Literal

import torch

from eigenscope.data import LabelledImages, draw_images
from eigenscope.datamodules.images import ImagesDataModule


class SyntheticImagesDataModule(ImagesDataModule):
    """Built-in synthetic images: 100 drawn classes in 20 groups, balanced; see :func:`eigenscope.data.draw_images`.

    Args:
        train_size: training images.
        test_size: test images.
        image_size: side in pixels.
        seed: of the data set; every image is a function of (seed, split, index). The run's own seed does not enter.
        **options: those of :class:`~eigenscope.datamodules.images.ImagesDataModule`.
    """

    num_classes = 100

    def __init__(
        self,
        train_size: int = 10_000,
        test_size: int = 2_000,
        image_size: int = 32,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in (("train_size", train_size), ("test_size", test_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.sizes = {"train": train_size, "test": test_size}
        self.image_size = image_size
        self.seed = seed

    def load(self, split: Literal["train", "test"]) -> LabelledImages:
        """Draws a split."""
        return LabelledImages(*draw_images(self.seed, split, torch.arange(self.sizes[split]), self.image_size))
