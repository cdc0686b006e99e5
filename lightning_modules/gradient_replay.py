"""Lightning module that replays a fixed gradient sequence through an optimizer."""

from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from eigenscope.charts import Chart, present
from eigenscope.lightning_modules.base import BaseModule, LRInterval


class GradientReplayModule(BaseModule):
    """Gradient replay: the loss ⟨p, g⟩ of a network that is one matrix p has the data g as gradient, bit for bit.

    A batch (B, rows, columns) is B gradients, whose mean is g; with B = 1 g is the datum itself. What an optimizer
    does with a chosen sequence of gradients is thus an ordinary run, with its configuration, callbacks and logs.

    Logs in every step ``train/grad_norm``, the Frobenius norm of the gradient before any clipping, and
    ``update/rms``, the root mean square of the entries of the weight's change divided by the learning rate (in a step
    at learning rate 0 there is none).

    Args:
        net: the network; it must have exactly one parameter.
        optimizer: makes the optimizer from the named parameter.
        lr_scheduler: makes the schedule from the optimizer; None keeps the rate.
        lr_interval: what the schedule counts, ``epoch`` or ``step``.

    Raises:
        ValueError: the network has more than one parameter, none, or a frozen one; in setup, or with the first batch
            of data that do not say so before, the gradients are not of its shape.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LRInterval = "step",
    ) -> None:
        super().__init__(net, optimizer, lr_scheduler, lr_interval)
        names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        if len(names) != 1 or len(list(net.parameters())) != 1:
            raise ValueError(
                f"net must have exactly one parameter, and that trainable: {type(net).__name__} has "
                f"{len(list(net.parameters()))}, of which trainable {names}"
            )
        self._before: tuple[Tensor, float] | None = None  # the weight and the learning rate of the step under way

    @property
    def weight(self) -> nn.Parameter:
        """The network's parameter p."""
        return next(self.net.parameters())

    def setup(self, stage: str) -> None:
        """Checks that the data are gradients of this parameter."""
        shape = getattr(getattr(self.trainer, "datamodule", None), "gradient_shape", None)
        if shape is not None:
            self._check_shape(tuple(shape))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """⟨p, g⟩, g the mean of the gradients of the batch; at least in float32, as float16 ends at 65504."""
        self._check_shape(tuple(batch.shape[1:]))
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return (self.weight.to(wide) * batch.to(wide).mean(0)).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of the gradient, and keeps what the step changes."""
        weight = self.weight
        if weight.grad is None:  # dropped by who skips the step
            return
        self.log("train/grad_norm", weight.grad.float().norm())
        self._before = weight.detach().to(torch.float32, copy=True), float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """Logs the size of the step, if there was one."""
        if self._before is not None:
            before, rate = self._before
            self._before = None
            if rate > 0:
                change = self.weight.detach().float() - before
                self.log("update/rms", change.square().mean().sqrt() / rate, prog_bar=True)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """What goes into the optimizer and what comes out."""
        figures = {"gradient norm": "train/grad_norm", "root mean square of the update over the rate": "update/rms"}
        return present([Chart("Gradients and updates", title, (tag,)) for title, tag in figures.items()], logged)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != tuple(self.weight.shape):
            (name, weight), *_ = self.net.named_parameters()
            raise ValueError(
                f"data must be gradients of the network's parameter: '{name}' is {tuple(weight.shape)}, "
                f"the gradients are {shape}"
            )
