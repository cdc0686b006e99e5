"""Where a run writes."""

from pathlib import Path

from lightning.pytorch import Trainer


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
