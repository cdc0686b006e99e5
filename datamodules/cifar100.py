"""CIFAR-100 data module, or any images in the same kind of folder tree."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torchvision.datasets import CIFAR100

from eigenscope.data import LabelledImages, class_names, read_class_folders
from eigenscope.data.class_folders import decode_png
from eigenscope.datamodules.images import ImagesDataModule


class CIFAR100DataModule(ImagesDataModule):
    """CIFAR-100 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).

    Args:
        root: with ``torchvision``, where the archive is downloaded to, its checksum verified; with ``folder``, an
            existing tree ``{train,test}/<class>/*.png`` of any number of classes and any one square image size.
        source: ``torchvision`` or ``folder``.
        cache_dir: with ``folder``, where the decoded images are kept; default ``<root>/.eigenscope-cache``.
        **options: those of :class:`~eigenscope.datamodules.images.ImagesDataModule`.

    Raises:
        ValueError: an argument is out of range. What is wrong with a tree is said when ``num_classes`` or
            ``image_size`` is first read, which the command line does before it builds the network, and what is wrong
            with an image in ``prepare_data``.
    """

    def __init__(
        self,
        root: str = "data/cifar100",
        source: Literal["torchvision", "folder"] = "torchvision",
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if source not in ("torchvision", "folder"):
            raise ValueError(f"source must be 'torchvision' or 'folder', got {source!r}")
        if cache_dir is not None and source == "torchvision":
            raise ValueError(f"cache_dir is for source 'folder' only, got {cache_dir!r} with source 'torchvision'")
        self.root = Path(root)
        self.source = source
        self.cache_dir = Path(cache_dir) if cache_dir is not None else self.root / ".eigenscope-cache"

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]
        """100, or the class folders counted."""
        return 100 if self.source == "torchvision" else len(class_names(self.root))

    @cached_property
    def image_size(self) -> int:  # type: ignore[override]
        """32, or the side of the first image in the tree, which must be square."""
        if self.source == "torchvision":
            return 32
        folder = self.root / "train" / class_names(self.root)[0]
        first = min(folder.glob("*.png"), default=None)
        if first is None:
            raise ValueError(f"class folder {folder} holds no *.png")
        _, height, width = decode_png(first).shape
        if height != width:
            raise ValueError(f"images must be square, {first} is {width}×{height}")
        return width

    def prepare_data(self) -> None:
        """Downloads and verifies the archive, or decodes the tree into its cache; on one rank of each machine."""
        for split in ("train", "test"):
            if self.source == "torchvision":
                CIFAR100(self.root, train=split == "train", download=True)
            else:
                read_class_folders(self.root, split, self.cache_dir)

    def load(self, split: Literal["train", "test"]) -> LabelledImages:
        """The images of a split as they lie in memory or in the cache."""
        if self.source == "folder":
            return read_class_folders(self.root, split, self.cache_dir)
        data = CIFAR100(self.root, train=split == "train")
        return LabelledImages(
            torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets, dtype=torch.int64)
        )
