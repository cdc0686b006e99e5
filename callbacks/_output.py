"""Output helpers of the callbacks: the run's folder and name, TensorBoard loggers, lines beside the progress bar."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.adapters.rich_names import redraw_lock
from eigenscope.callbacks.reporting.run_folder import RunFolder, is_remote, local_log_dir


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """The trainer's TensorBoard loggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def print_beside_bar(trainer: Trainer, pl_module: LightningModule, text: str) -> None:
    """Prints on rank zero, above the progress bar if there is one.

    Lightning's own way loses lines to its rich bar, which redraws over them; the bar's console does not.
    """
    progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
    if progress is None:
        pl_module.print(text)
    elif trainer.is_global_zero:
        with redraw_lock(progress):  # or the thread that redraws the bar may wipe the text with its former lines
            progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of a run, on rank zero; None on other ranks, in a fast_dev_run, and in an evaluation.

    :class:`~eigenscope.callbacks.RunFolder` has decided it; a trainer without that callback has the local folder of its
    first logger that has one, if any.
    """
    if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
        return None
    decider = _decider(trainer)
    return decider.path if decider is not None else next(filter(None, map(local_log_dir, trainer.loggers)), None)


def run_name(trainer: Trainer, pl_module: LightningModule) -> str:
    """What a run is called: by its logger, its configuration file, or the class of its module."""
    decider = _decider(trainer)
    logged = trainer.logger.name if trainer.logger is not None else None
    return str((decider.experiment if decider is not None else logged) or type(pl_module).__name__)


def checkpoint_folder(trainer: Trainer) -> str:
    """Where a run keeps its checkpoints: as a callback says, else ``checkpoints`` in its folder; for all ranks."""
    said = next(filter(None, (getattr(each, "dirpath", None) for each in trainer.checkpoint_callbacks)), None)
    decider = _decider(trainer)
    decided = decider.path if decider is not None else None
    return str(said or os.path.join(decided or trainer.log_dir or trainer.default_root_dir, "checkpoints"))


def written_folders(trainer: Trainer) -> list[Path]:
    """The local folders that its logs, its record and its checkpoints are going to be in."""
    logs = [folder for logger in trainer.loggers if (folder := local_log_dir(logger)) is not None]
    decider = _decider(trainer)
    if not logs and decider is not None:
        logs = [decider.continues or decider.planned_root(trainer)]
    checkpoints = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [*logs, *(Path(folder) for folder in checkpoints if folder is not None and not is_remote(str(folder)))]


def _decider(trainer: Trainer) -> RunFolder | None:
    return next((each for each in callbacks_of(trainer) if isinstance(each, RunFolder)), None)
