"""Curriculum pacing: unlocks the tiers of a curriculum during a fit and resets best scores."""

import math
from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.charts import Chart, present
from eigenscope.noise import Curriculum
from eigenscope.protocols import KeepsBest


class CurriculumPacing(Callback):
    """Unlocks the tiers of a curriculum during a fit, and resets best scores at each unlock.

    Logs ``curriculum/types``, the number of unlocked types, once an epoch.

    Args:
        curriculum: what is paced; with patience, ``monitor`` must be logged in validation.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self.start()

    def start(self) -> None:
        """Begins anew, as every fit does that is not resumed."""
        self.curriculum.lock()
        self._best = math.inf
        self._waited = 0

    def progress(self) -> dict[str, Any]:
        """All there is to know of how far it is, as plain values."""
        unlocked_at = self.curriculum.unlocked_at.tolist()
        return {"unlocked_at": unlocked_at, "best": self._best, "waited": self._waited}

    def go_on(self, progress: dict[str, Any]) -> None:
        """Restores the state.

        Raises:
            ValueError: it is not the progress of this curriculum.
        """
        have, restored = self.curriculum.unlocked_at.tolist(), progress["unlocked_at"]
        if len(restored) != len(have) or (self.curriculum.patience is None and restored != have):
            raise ValueError(
                f"the checkpoint's curriculum unlocks its tiers at {restored}, the configuration's at {have}"
            )
        self.curriculum.unlocked_at.copy_(self.curriculum.unlocked_at.new_tensor(restored))
        self._best, self._waited = progress["best"], progress["waited"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where a tier is new, lets the best scores restart."""
        epoch = trainer.current_epoch
        if epoch and self.curriculum.types_at(epoch) != self.curriculum.types_at(epoch - 1):
            self._best, self._waited = math.inf, 0
            _restart_best(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unlocks the next tier from the next epoch on, if the score has stalled for long enough."""
        if self.curriculum.patience is None:
            return
        score = trainer.callback_metrics.get(self.curriculum.monitor)
        if score is None:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(
                f"monitor {self.curriculum.monitor!r} of the curriculum was not logged; there are: {logged}"
            )
        epoch = trainer.current_epoch
        if trainer.sanity_checking or self.curriculum.types_at(epoch + 1) != self.curriculum.types_at(epoch):
            return  # nothing is learnt yet, or the next tier is about to be used
        if float(score) < self._best:
            self._best, self._waited = float(score), 0
            return
        self._waited += 1
        if self._waited >= self.curriculum.patience:
            self.curriculum.unlock_next(epoch + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how many types there were."""
        types = self.curriculum.types_at(trainer.current_epoch)
        pl_module.log("curriculum/types", float(len(types)), sync_dist=True)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """The number of unlocked types."""
        return present([Chart("Training and validation", "unlocked types", ("curriculum/types",))], logged)


def _worst(mode: str) -> float:
    return math.inf if mode == "min" else -math.inf


def _restart_best(trainer: Trainer) -> None:
    """Makes everything that keeps a best score forget it."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            callback.best_k_models = {}
            callback.kth_best_model_path = callback.best_model_path = ""
            callback.best_model_score = callback.current_score = None
            callback.kth_value = torch.tensor(_worst(callback.mode), dtype=torch.float32)
        elif isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            callback.best_score = callback.best_score.new_tensor(_worst(callback.mode))
        elif isinstance(callback, KeepsBest):
            callback.restart_best()
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            config.scheduler.best = config.scheduler.mode_worse
            config.scheduler.num_bad_epochs = 0
