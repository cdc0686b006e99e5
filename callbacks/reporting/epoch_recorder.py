"""Base class of callbacks that report the metrics of every finished epoch."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.callbacks._output import print_beside_bar
from eigenscope.results import EpochResult, MonitoredMetric, scored
from eigenscope.results.monitor_choice import choose_monitor
from eigenscope.results.run_result import is_of_validation
from eigenscope.text import abbreviate_names


class EpochRecorder(Callback, ABC):
    """Collects an :class:`~eigenscope.results.EpochResult` per training epoch; a resumed run keeps those before.

    Args:
        monitor: the logged metric that epochs are judged by; a run that does not log the default, ``val/acc``, is
            judged by :func:`~eigenscope.results.monitor_choice.choose_monitor`.
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
            if self._validated or not is_of_validation(name)
        }
        if self._validated or not trainer.enable_validation:
            self._settle_monitor(trainer, pl_module, metrics)
        seconds = time.perf_counter() - self._started
        self.epochs.append(EpochResult(trainer.current_epoch + 1, metrics, seconds, self._restarts))
        self._restarts = self._validated = False
        self.epoch_recorded(trainer, pl_module)

    def unscored(self, trainer: Trainer) -> str | None:
        """Why no epoch has the score, in a clause; None if one has."""
        if scored(self.epochs, self.monitor):
            return None
        logged = sorted({name for row in self.epochs for name in row.metrics if is_of_validation(name)})
        if logged:
            return f"{self.monitor.name} was never logged, of the validation only {abbreviate_names(logged)}"
        earlier = ""
        if 0 < trainer.max_steps <= trainer.global_step and not self.epochs[1:]:
            batches = trainer.max_steps * trainer.accumulate_grad_batches
            earlier = f"; --trainer.val_check_interval {batches} validates then"
        return f"the run ended after step {trainer.global_step}, before any validation{earlier}"

    def _settle_monitor(self, trainer: Trainer, pl_module: LightningModule, metrics: Collection[str]) -> None:
        """Judges a run that does not log the default metric by one that it logs, and says so."""
        if self.monitor.name in metrics or self.monitor != MonitoredMetric():
            return
        chosen = choose_monitor(metrics)
        if chosen is None:
            return
        before, self.monitor = self.monitor, chosen
        first = next(each for each in callbacks_of(trainer) if isinstance(each, EpochRecorder))
        if first is self:
            best = "largest" if chosen.mode == "max" else "smallest"
            print_beside_bar(
                trainer,
                pl_module,
                f"{before.name} is not logged: epochs are judged by {chosen.name}, best when {best}; a monitor of "
                "EpochTable and Scoreboard names another.",
            )

    def restart_best(self) -> None:
        """Resets the best score, from this epoch on."""
        self._restarts = True

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far and what there is of the one under way, as plain values."""
        return {
            "epochs": [asdict(row) for row in self.epochs],
            "monitor": asdict(self.monitor),
            "elapsed": time.perf_counter() - self._started,
            "validated": self._validated,
            "restarts": self._restarts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the epochs of the resumed run."""
        self.epochs = [EpochResult(**row) for row in state_dict["epochs"]]
        if self.monitor == MonitoredMetric() and "monitor" in state_dict:
            self.monitor = MonitoredMetric(**state_dict["monitor"])
        self._elapsed, self._validated, self._restarts = (state_dict[n] for n in ("elapsed", "validated", "restarts"))
