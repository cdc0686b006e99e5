"""Base class of callbacks that report the metrics of every finished epoch."""

import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eigenscope.results import EpochResult, MonitoredMetric


class EpochRecorder(Callback, ABC):
    """Collects an :class:`~eigenscope.results.EpochResult` per training epoch; a resumed run keeps those before.

    Args:
        monitor: the logged metric that epochs are judged by.
    """

    affects_training = False

    def __init__(self, monitor: MonitoredMetric = MonitoredMetric()) -> None:  # noqa: B008  a frozen dataclass
        self.monitor = monitor
        self.epochs: list[EpochResult] = []
        self._started = 0.0
        self._elapsed = 0.0  # of the epoch under way, in the run that this one resumes
        self._validated = False
        self._restarts = False

    @abstractmethod
    def epoch_recorded(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on every rank after ``self.epochs`` has grown."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of a run that is resumed within an epoch, whose start it does not see."""
        self._started = time.perf_counter() - self._elapsed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the epoch's validation metrics are new."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the epoch: Lightning keeps metrics of an earlier validation, which are left out."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        seconds = time.perf_counter() - self._started
        self.epochs.append(EpochResult(trainer.current_epoch + 1, metrics, seconds, self._restarts))
        self._restarts = self._validated = False
        self.epoch_recorded(trainer, pl_module)

    def restart_best(self) -> None:
        """Resets the best score, from this epoch on."""
        self._restarts = True

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far and what there is of the one under way, as plain values."""
        return {
            "epochs": [asdict(row) for row in self.epochs],
            "elapsed": time.perf_counter() - self._started,
            "validated": self._validated,
            "restarts": self._restarts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the epochs of the resumed run."""
        self.epochs = [EpochResult(**row) for row in state_dict["epochs"]]
        self._elapsed, self._validated, self._restarts = (state_dict[n] for n in ("elapsed", "validated", "restarts"))
