"""Printing beside a progress bar."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer


def print_beside_bar(trainer: Trainer, pl_module: LightningModule, text: str) -> None:
    """Prints on rank zero, above the progress bar if there is one.

    Lightning's own way loses lines to its rich bar, which redraws over them; the bar's console does not.
    """
    progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
    if progress is None:
        pl_module.print(text)
    elif trainer.is_global_zero:
        with progress.live._lock:  # or the thread that redraws the bar may wipe the text with the bar's former lines
            progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
