"""What the image data modules share: validation protocols, loaders, and the order of samples."""

import os
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from eigenscope.data import (
    AugmentationKind,
    EpochSampler,
    ImageDataset,
    LabelledImages,
    augmentation,
    stratified_split,
)

Protocol = Literal["holdout", "test"]
Batch = tuple[Tensor, Tensor]


class ImagesDataModule(LightningDataModule, ABC):
    """Batches of images (B, 3, H, W) float32 in [0, 1] with classes (B,) int64.

    The order of samples and their augmentation follow the run's seed (``seed_everything``) and the epoch; they are
    the same for any number of workers and ranks.

    Args:
        protocol: ``holdout`` validates on a stratified part of the training set, so that the test set can be read
            once, after the fit; ``test`` validates on the test set, as is often reported.
        holdout_fraction: that part's share, used by ``holdout`` only; the choice is the same in every run.
        augmentation: of the training images, see :func:`eigenscope.data.augmentation`.
        batch_size: images per step over all ranks together.
        num_workers: loader processes per rank; ``auto`` is the cores of this rank, at most 8.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    num_classes: int
    image_size: int

    def __init__(
        self,
        protocol: Protocol = "holdout",
        holdout_fraction: float = 0.1,
        augmentation: AugmentationKind = "recipe",
        batch_size: int = 256,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol must be 'holdout' or 'test', got {protocol!r}")
        if not 0 < holdout_fraction < 1:
            raise ValueError(f"holdout_fraction must be between 0 and 1, got {holdout_fraction}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers != "auto" and num_workers < 0:
            raise ValueError(f"num_workers must be 'auto' or at least 0, got {num_workers}")
        self.protocol = protocol
        self.holdout_fraction = holdout_fraction
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._seed = 0
        self._splits: dict[str, LabelledImages] = {}

    @abstractmethod
    def load(self, split: Literal["train", "test"]) -> LabelledImages:
        """The images of one published split."""

    def setup(self, stage: str) -> None:
        """Loads what the stage reads: ``fit``, ``validate``, ``test`` or ``predict``."""
        # on all ranks at once, unlike the loaders, which a single rank may ask for
        self._seed = self.trainer.strategy.broadcast(torch.initial_seed()) if self.trainer else torch.initial_seed()
        wanted = {"fit": {"train", "val"}, "validate": {"val"}, "test": {"test"}, "predict": {"test"}}[stage]
        if self.protocol == "holdout" and wanted & {"train", "val"} and "train" not in self._splits:
            train = self.load("train")
            kept, held_out = stratified_split(train.labels, self.holdout_fraction, seed=0)
            self._splits |= {"train": train.subset(kept), "val": train.subset(held_out)}
        elif "train" in wanted and "train" not in self._splits:
            self._splits["train"] = self.load("train")
        if "test" not in self._splits and (self.protocol == "test" or "test" in wanted):
            self._splits["test"] = self.load("test")
        if self.protocol == "test":
            self._splits["val"] = self._splits["test"]
        if stage == "fit" and (count := len(self._splits["train"].labels)) < self.batch_size:
            raise ValueError(f"batch_size must be at most {count}, the training images, got {self.batch_size}")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled and augmented, whole batches only."""
        return self._loader("train", train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation image once, in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test image once, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test images in order."""
        return self._loader("test")

    def _loader(self, split: str, train: bool = False) -> DataLoader[Batch]:
        ranks, rank, local_ranks = 1, 0, 1
        if self.trainer is not None:
            ranks, rank, local_ranks = self.trainer.world_size, self.trainer.global_rank, self.trainer.num_devices
        data, seed = self._splits[split], self._seed
        if self.batch_size % ranks:
            raise ValueError(f"batch_size is over all ranks and must be a multiple of {ranks}, got {self.batch_size}")
        if len(data.labels) < ranks:
            raise ValueError(f"the {split} set of {len(data.labels)} images is too small for {ranks} ranks")
        augment = augmentation(self.augmentation, self.image_size) if train else None
        sampler = EpochSampler(len(data.labels), shuffle=train, even=train, seed=seed, num_replicas=ranks, rank=rank)
        workers = min(8, max(1, _cores() // max(1, local_ranks))) if self.num_workers == "auto" else self.num_workers
        return DataLoader(
            ImageDataset(data, augment, seed),
            batch_size=self.batch_size // ranks,
            sampler=sampler,
            drop_last=train,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
        )


def _as_it_is(batch: Any) -> Any:
    """The data set yields whole batches; a lambda could not be sent to a spawned worker."""
    return batch


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
