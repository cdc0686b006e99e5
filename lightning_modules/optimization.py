"""Optimizer and schedule of a module, from the injected callables to ``configure_optimizers``."""

from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

LRInterval = Literal["epoch", "step"]


def check_interval(lr_interval: str) -> None:
    """Checks what the schedule counts.

    Raises:
        ValueError: it is neither epochs nor steps.
    """
    if lr_interval not in ("epoch", "step"):
        raise ValueError(f"lr_interval must be 'epoch' or 'step', got {lr_interval!r}")


def optimizer_and_schedule(
    module: LightningModule,
    net: nn.Module,
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
    lr_interval: LRInterval,
) -> Any:
    """The optimizer over the network's named trainable parameters, and its schedule.

    Raises:
        ValueError: the schedule is of fixed length and shorter than the run.
    """
    made = optimizer([(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad])
    if lr_scheduler is None:
        return made
    scheduler = lr_scheduler(made)
    _check_length(module, scheduler, lr_interval)
    schedule: dict[str, Any] = {"scheduler": scheduler, "interval": lr_interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        schedule["monitor"] = getattr(scheduler, "monitor", "val/loss")
    return {"optimizer": made, "lr_scheduler": schedule}


def _check_length(module: LightningModule, scheduler: Any, lr_interval: LRInterval) -> None:
    """A schedule of fixed length raises when it is stepped past its end, which is late to find out."""
    steps = getattr(scheduler, "total_steps", None)
    if steps is None or module._trainer is None:
        return
    wanted = module.trainer.estimated_stepping_batches if lr_interval == "step" else module.trainer.max_epochs
    if wanted is not None and steps < wanted:
        raise ValueError(
            f"lr_scheduler {type(scheduler).__name__} has {steps} steps, but the run takes {wanted} (lr_interval "
            f"is {lr_interval!r}): make it as long as the run"
        )
