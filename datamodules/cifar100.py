"""CIFAR-100 data module, or any images in the same kind of folder tree."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only

from eigenscope.data import LabelledImages, class_names, read_class_folders
from eigenscope.data.cifar100_files import (
    check_cifar100,
    cifar100_is_there,
    fetch_cifar100,
    planned_download,
    read_cifar100,
)
from eigenscope.data.class_folders import list_class_folders, skipped_lines
from eigenscope.data.image_files import decode_image
from eigenscope.datamodules.images import ImagesDataModule


class CIFAR100DataModule(ImagesDataModule):
    """CIFAR-100 (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009).

    Args:
        root: with ``torchvision``, where the archive is downloaded to, its checksum verified; with ``folder``, an
            existing tree ``{train,test}/<class>/*.png`` (or ``.jpg``, ``.tif``, …, see
            :func:`eigenscope.data.image_files.decode_image`) of any number of classes and any one square image size.
        source: ``torchvision`` or ``folder``.
        cache_dir: with ``folder``, where the decoded images are kept; default ``<root>/.eigenscope-cache``.
        **options: those of :class:`~eigenscope.datamodules.images.ImagesDataModule`.

    Raises:
        ValueError: an argument is out of range. What is wrong with a tree or an archive, and that an archive is missing
            and cannot be downloaded, is said when ``num_classes`` or ``image_size`` is first read, which the command
            line does before it builds the network, and what is wrong with an image in ``prepare_data``.
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
        return len(class_names(self.root)) if self.source == "folder" else self._published[0]

    @cached_property
    def image_size(self) -> int:  # type: ignore[override]
        """32, or the side of the first image in the tree, which must be square."""
        if self.source == "torchvision":
            return self._published[1]
        first = next(iter(list_class_folders(self.root, "train").images.values()))[0]
        _, height, width = decode_image(first).image.shape
        if height != width:
            raise ValueError(f"images must be square, {first} is {width}×{height}")
        return width

    @cached_property
    def _published(self) -> tuple[int, int]:
        """The classes and the image size of CIFAR-100, once it is known that its images can be had."""
        if not cifar100_is_there(self.root):
            rank_zero_only(print)(planned_download(self.root), flush=True)
        check_cifar100(self.root)
        return 100, 32

    def prepare_data(self) -> None:
        """Downloads and verifies the archive, or decodes the tree into its cache; on one rank of each machine."""
        if self.source == "torchvision":
            _ = self._published
            fetch_cifar100(self.root)
            return
        for line in skipped_lines(self.root):
            print(line, flush=True)
        for split in ("train", "test"):
            read_class_folders(self.root, split, self.cache_dir)

    def load(self, split: Literal["train", "test"]) -> LabelledImages:
        """The images of a split as they lie in memory or in the cache."""
        if self.source == "folder":
            return read_class_folders(self.root, split, self.cache_dir)
        return read_cifar100(self.root, split)
