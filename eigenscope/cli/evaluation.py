"""Evaluations by ``validate``, ``test`` and ``predict``: they add to the record of the checkpoint's run."""

import os
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from eigenscope.callbacks import PredictionWriter
from eigenscope.callbacks.reporting.predictions import free_path
from eigenscope.callbacks.reporting.run_metadata import data_fingerprint
from eigenscope.checkpoints import epochs_of
from eigenscope.cli.resume.continued_run import run_of
from eigenscope.results.environment import versions
from eigenscope.results.run_metadata import FILE_NAME, add_evaluation

#: The method that a subcommand runs, by which it is known whether a module has anything to do.
_STEPS = {"validate": "validation_step", "test": "test_step"}


@dataclass
class Evaluation:
    """One ``validate``, ``test`` or ``predict``.

    Args:
        subcommand: which.
        path: of the checkpoint; None evaluates the weights that the module begins with.
        checkpoint: what it holds.
    """

    subcommand: str
    path: Path | None = None
    checkpoint: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Finds the run; keeps no weights."""
        content = self.checkpoint or {}
        self.run = None if self.path is None else run_of(self.path, content)
        self.epoch, self.step = (epochs_of(content), content.get("global_step")) if content else (None, None)
        self.checkpoint = None
        self.writer = PredictionWriter()
        self._started = 0.0

    def begin(self, trainer: Trainer, warm_start: str | None) -> None:
        """Says if the weights are untrained; chooses the file of predictions."""
        if self.path is None and warm_start is None:
            _say(
                f"{self.subcommand}: no --ckpt_path is given, so these are the weights that the model begins with, "
                "untrained unless it loads its own."
            )
        stem = self.path.stem if self.path is not None else "untrained" if warm_start is None else "warm_start"
        place = self.run if self.run is not None and os.access(self.run, os.W_OK) else Path(trainer.default_root_dir)
        if self.subcommand == "predict" and trainer.is_global_zero:
            self.writer.path = free_path(place / "predictions", stem)
        self._started = time.perf_counter()

    def end(self, trainer: Trainer) -> None:
        """Records figures and predictions, on rank zero; an evaluation that cannot be recorded says why."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        if self.subcommand == "predict":
            saved = self.writer.saved
            _say("predict: there were no predictions to save." if saved is None else f"The predictions are in {saved}.")
        if self.path is None:
            return
        if self.run is None or not (self.run / FILE_NAME).exists():
            where = "it is in no run's folder" if self.run is None else f"{self.run} has no {FILE_NAME}"
            _say(f"{self.subcommand} is recorded nowhere: the run of checkpoint {self.path} is not known ({where}).")
            return
        try:
            add_evaluation(self.run, self._entry(trainer))
        except (OSError, ValueError) as error:
            _say(f"{self.subcommand} could not be recorded in {self.run / FILE_NAME}: {error}")
            return
        _say(f"{self.subcommand} of {self.path} is recorded in {self.run / FILE_NAME}.")

    def _entry(self, trainer: Trainer) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        saved = {} if self.writer.saved is None else {"predictions": str(self.writer.saved)}
        return {
            "subcommand": self.subcommand,
            "checkpoint": str(self.path),
            "epoch": self.epoch,
            "step": self.step,
            "data": {
                "module": type(data).__name__,
                "protocol": getattr(data, "protocol", ""),
                **data_fingerprint(trainer),
            },
            "figures": {name: float(value) for name, value in trainer.callback_metrics.items()},
            **saved,
            "seconds": time.perf_counter() - self._started,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "command": shlex.join(sys.orig_argv),
        }


def nothing_to_do(subcommand: str, model: LightningModule) -> str | None:
    """Why a subcommand has nothing to do for a module; None if it has a step for it."""
    kind = type(model)
    step = _STEPS.get(subcommand)
    if step is not None and getattr(kind, step) is getattr(LightningModule, step):
        return f"there is nothing to {subcommand}: {kind.__name__} has no {step}"
    own = kind.predict_step is not LightningModule.predict_step or kind.forward is not LightningModule.forward
    if subcommand == "predict" and not own:
        return f"there is nothing to predict: {kind.__name__} has no predict_step and no forward"
    return None


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
