"""Keeps the figures of every finished epoch, for callbacks that report them."""

import time
from abc import abstractmethod
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eigenscope.study import EpochResult


class EpochRecorder(Callback):
    """Collects an :class:`~eigenscope.study.EpochResult` per training epoch; a resumed run keeps those before.

    Reads ``train/acc``, ``train/loss`` and ``val/acc`` from the logged metrics, so a module that does not log them
    is not recorded.
    """

    def __init__(self) -> None:
        self.epochs: list[EpochResult] = []
        self._started = 0.0
        self._validated = False

    @abstractmethod
    def epoch_recorded(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on every rank after ``self.epochs`` has grown."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the epoch's validation figures are new."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the epoch."""
        logged = trainer.callback_metrics
        if not {"train/acc", "train/loss"} <= logged.keys():
            return
        self.epochs.append(
            EpochResult(
                epoch=trainer.current_epoch + 1,
                train_acc=float(logged["train/acc"]),
                val_acc=float(logged["val/acc"]) if self._validated and "val/acc" in logged else None,
                loss=float(logged["train/loss"]),
                seconds=time.perf_counter() - self._started,
            )
        )
        self.epoch_recorded(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, as plain values."""
        return {"epochs": [asdict(row) for row in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the epochs of the run that goes on."""
        self.epochs = [EpochResult(**row) for row in state_dict["epochs"]]
