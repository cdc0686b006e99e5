"""Output helpers of the callbacks: run folder, TensorBoard loggers, and lines beside the progress bar."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from eigenscope.adapters.rich_names import redraw_lock


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
    """The folder of the first logger's run, on rank zero; None on other ranks, without one, and in a fast_dev_run."""
    if not trainer.is_global_zero or not trainer.loggers:
        return None
    folder = trainer.loggers[0].log_dir  # a fast_dev_run has a logger without one
    return None if folder is None else Path(folder)


def written_folders(trainer: Trainer) -> list[Path]:
    """The folders of its loggers and checkpoints."""
    checkpoints = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    logs = [getattr(logger, "log_dir", None) for logger in trainer.loggers]
    if not trainer.loggers and None in checkpoints:
        logs = [trainer.default_root_dir]
    return [Path(folder) for folder in [*logs, *checkpoints] if folder is not None]
