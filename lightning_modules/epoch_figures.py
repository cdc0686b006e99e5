"""Metrics that are logged at the end of an epoch."""

from typing import Any

from lightning.pytorch import LightningModule
from torchmetrics import Metric


def log_epoch_metric(module: LightningModule, name: str, metric: Metric) -> None:
    """Logs a metric at the end of the epoch under way; to be called in each of its steps, after the update.

    It is ``module.log`` in the first of these steps in this process. From then on Lightning reads the metric itself:
    another call would change nothing and take half a millisecond.

    Args:
        module: whose step is under way, with the metric among its submodules.
        name: to log it under.
        metric: updated each step.
    """
    trainer = module._trainer
    held: Any = getattr(trainer, "_results", None)  # Lightning has no public way to what it holds
    figure = None if held is None else held.get(f"{module._current_fx_name}.{name}")
    if figure is None or figure.has_reset:
        module.log(name, metric, on_step=False, on_epoch=True)
