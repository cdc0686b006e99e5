"""Data module of multi-query associative recall (MQAR): key-value sequences and queries about them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from eigenscope.data import RecallDataset, RecallTask, ShorterContext
from eigenscope.datamodules.loaders import Batch, check_loading, fingerprint, make_loader, run_seed
from eigenscope.noise import stream_key

_HELD_OUT = {"val": stream_key(1), "test": stream_key(2)}  # the same sets in every run, whatever its seed


class AssociativeRecallDataModule(LightningDataModule):
    """Multi-query associative recall (Arora et al., *Zoology*, ICLR 2024): tokens and labels, each (B, T) int64.

    Every sequence is a function of (seed, epoch, index), the same for any number of workers and ranks. Training
    sequences are new in every epoch; validation and test sets are fixed, the same in every run, and always of the
    whole task. What sequences hold is said at :func:`eigenscope.data.draw_recall`.

    Args:
        task: what a sequence is made of.
        shorter: contexts of the first epochs of training, one after the other: what is learned from a few tokens in
            hundreds of steps takes thousands from many.
        samples_per_epoch: training sequences.
        val_samples: validation sequences, and as many for the test.
        batch_size: sequences per step over all ranks together.
        num_workers: loader processes per rank; ``auto`` is the cores of this rank, at most 8.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        task: RecallTask,
        shorter: Sequence[ShorterContext] = (),
        samples_per_epoch: int = 4096,
        val_samples: int = 256,
        batch_size: int = 64,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers)
        if samples_per_epoch < batch_size:
            raise ValueError(f"samples_per_epoch must be at least batch_size, {batch_size}, got {samples_per_epoch}")
        if val_samples < 1:
            raise ValueError(f"val_samples must be at least 1, got {val_samples}")
        self.vocabulary = task.vocabulary
        self.task = task
        self.shorter = tuple(shorter)
        for part in self.shorter:
            part.of(task)  # refuses what does not go with the task now rather than in its epoch
        self.samples_per_epoch = samples_per_epoch
        self.val_samples = val_samples
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._seed = 0

    def setup(self, stage: str) -> None:
        """Takes the run's seed."""
        self._seed = run_seed(self.trainer)

    def fingerprint(self) -> dict[str, str]:
        """Of each set's parameters and its first sequences, those of training as of seed 0, whatever the run's."""
        sets = {"train": (self.samples_per_epoch, 0)}
        sets |= {name: (self.val_samples, seed) for name, seed in _HELD_OUT.items()}
        found = {}
        for name, (size, seed) in sets.items():
            train = name not in _HELD_OUT
            shorter = [asdict(part) for part in self.shorter] if train else []
            data = RecallDataset(size, self.task, seed=seed, fixed=not train)
            found[name] = fingerprint(size, asdict(self.task), shorter, *data.__getitems__(range(min(size, 4))))
        return found

    def train_dataloader(self) -> DataLoader[Batch]:
        """New sequences in every epoch."""
        return self._loader("train", self.samples_per_epoch, self._seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The fixed validation sequences."""
        return self._loader("val", self.val_samples, _HELD_OUT["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        """The fixed test sequences."""
        return self._loader("test", self.val_samples, _HELD_OUT["test"])

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test sequences."""
        return self.test_dataloader()

    def _loader(self, name: str, size: int, seed: int) -> DataLoader[Batch]:
        train = name == "train"
        return make_loader(
            self.trainer,
            RecallDataset(size, self.task, self.shorter if train else (), seed=seed, fixed=not train),
            name,
            size=size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            train=train,
            seed=seed,
        )
