"""Base of the image data modules: validation splits, loaders, and the order of samples."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from eigenscope.data import AugmentationKind, ImageDataset, LabelledImages, augmentation, stratified_split
from eigenscope.datamodules.loaders import Batch, check_loading, fingerprint, make_loader, run_seed

Protocol = Literal["holdout", "test"]


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
        check_loading(batch_size, num_workers)
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
        self._seed = run_seed(self.trainer)
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

    def fingerprint(self) -> dict[str, str]:
        """Of the images and labels of every split that was loaded."""
        digests = {id(data): fingerprint(len(data.labels), *data) for data in self._splits.values()}  # val may be test
        return {name: digests[id(data)] for name, data in self._splits.items()}

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
        data = self._splits[split]
        augment = augmentation(self.augmentation, self.image_size) if train else None
        return make_loader(
            self.trainer,
            ImageDataset(data, augment, self._seed),
            split,
            size=len(data.labels),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            train=train,
            seed=self._seed,
        )
