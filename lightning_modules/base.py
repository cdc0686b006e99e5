"""Base classes of the Lightning modules: hyperparameters, optimizer and learning-rate schedule, metrics by stage."""

import inspect
import io
import math
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from eigenscope.adapters.lightning_names import given_hyperparameters
from eigenscope.checkpoints import read_checkpoint
from eigenscope.lightning_modules.metrics import MeanLoss
from eigenscope.optim.half_precision import check_eps
from eigenscope.optim.schedules import length_mismatch, run_length

LRInterval = Literal["epoch", "step"]
Stage = Literal["train", "val", "test"]


class BaseModule(LightningModule):
    """A Lightning module with an injected network, optimizer and learning-rate schedule.

    A schedule of :mod:`eigenscope.optim.schedules` whose length is not stated follows the run: ``max_epochs``,
    ``max_steps``, the batches of an epoch, accumulation and ranks. A stated length that does not fit the run is
    reported in one line before training.

    Args:
        net: the network.
        optimizer: makes the optimizer from the named trainable parameters.
        lr_scheduler: makes the schedule from the optimizer; None keeps the rate.
        lr_interval: what the schedule counts, ``epoch`` or ``step``.

    Raises:
        ValueError: an argument is out of range; in configure_optimizers, the schedule is shorter than the run and
            cannot continue, or follows a run whose length nobody knows.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LRInterval = "epoch",
    ) -> None:
        super().__init__()
        if lr_interval not in ("epoch", "step"):
            raise ValueError(f"lr_interval must be 'epoch' or 'step', got {lr_interval!r}")
        self._save_given_hyperparameters()
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As Lightning's; reads a local file without executing code, and one of version 0.4 in present names.

        Raises:
            ValueError: the file is damaged, or holds more than plain values and tensors.
        """
        if isinstance(checkpoint_path, str | Path) and Path(checkpoint_path).is_file():
            present = io.BytesIO()
            torch.save(read_checkpoint(Path(checkpoint_path)), present)
            present.seek(0)
            checkpoint_path = present
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    @property
    def trained(self) -> nn.Module:
        """The module whose parameters are trained: the network, unless a subclass has parameters of its own."""
        return self.net

    def configure_optimizers(self) -> Any:
        """The injected optimizer over named trainable parameters, and its schedule."""
        named = self.trained.named_parameters()
        optimizer = self.optimizer([(name, parameter) for name, parameter in named if parameter.requires_grad])
        check_eps(optimizer)
        if self.lr_scheduler is None:
            return optimizer
        try:
            with run_length(self._run_length):
                scheduler = self.lr_scheduler(optimizer)
        except ValueError as error:
            if "total_steps OR" not in str(error):
                raise
            raise ValueError(
                "lr_scheduler OneCycleLR needs total_steps, or epochs and steps_per_epoch; "
                "eigenscope.optim.OneCycleLR without any of them follows the run"
            ) from error
        note = length_mismatch(scheduler, self._run_length, self.lr_interval) if self._is_attached() else None
        if note is not None and not getattr(self.trainer, "fast_dev_run", False):  # whose few steps are no run
            rank_zero_only(print)(note, flush=True)
        schedule: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Says if a schedule that follows the run was resumed in a run of another length."""
        scheduler: Any
        for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            if (before := getattr(scheduler, "resumed_from", None)) is not None:
                now, unit = getattr(scheduler, scheduler.length_name), self.lr_interval
                rank_zero_only(print)(
                    f"lr_scheduler {type(scheduler).__name__} follows the run, which takes {now} {unit}s instead of "
                    f"{before}: it continues at a learning rate of {max(scheduler.get_last_lr()):.3g}",
                    flush=True,
                )

    def log_mean(self, name: str, metric: nn.Module, value: Tensor, count: int) -> None:
        """Updates a :class:`MeanLoss` with the mean of ``count`` samples, and logs it at the end of the epoch."""
        metric = cast(MeanLoss, metric)
        metric.update(value, count)
        self.log(name, metric, on_step=False, on_epoch=True)

    def _run_length(self) -> int | None:
        """The steps that a schedule will take in this run; None if nobody knows."""
        trainer = self.trainer
        epochs = None if trainer.max_epochs in (None, -1) else max(1, trainer.max_epochs)
        if self.lr_interval == "step":
            steps = trainer.estimated_stepping_batches  # of which -1 says that nobody counted the batches
            return max(1, int(steps)) if 0 <= steps < math.inf else None
        if trainer.max_steps == -1:
            return epochs
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        if trainer.num_training_batches == math.inf:
            return epochs
        in_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        begun = max(1, math.ceil(trainer.max_steps / max(1, in_epoch)))
        return begun if epochs is None else min(begun, epochs)

    def _is_attached(self) -> bool:
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    def _save_given_hyperparameters(self) -> None:
        """Saves what the command line built the module from, which are plain values; from Python they are live objects.

        Left out is what the data would have told the network had it asked: jsonargparse drops a linked argument that a
        class does not take, but Lightning keeps it here, and no network could be built from it again.
        """
        given: Any = given_hyperparameters()
        if given is None:
            return
        package, _, name = given["net"]["class_path"].rpartition(".")
        taken = inspect.signature(getattr(import_module(package), name)).parameters
        arguments = given["net"]["init_args"]
        for argument in [argument for argument in arguments if argument not in taken]:
            del arguments[argument]
        self.save_hyperparameters()


class EvaluatedModule(BaseModule, ABC):
    """A :class:`BaseModule` with a step for every stage; what one does, a subclass says in :meth:`evaluate`."""

    @abstractmethod
    def evaluate(self, stage: Stage, batch: Any) -> Any:
        """Updates the metrics of a stage with a batch; may return the loss to train with."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, which is logged."""
        loss: Tensor = self.evaluate("train", batch)
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Updates the metrics of the validation."""
        self.evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Updates the metrics of the test."""
        self.evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """What the network makes of the first part of a batch: a tensor, or a dictionary of them, samples first."""
        return self(batch[0])
