"""Ends a training at the first number that is not finite, while its weights still are."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out
from torch.optim import Optimizer

from eigenscope.protocols import Traced
from eigenscope.study import StoppedRun


class NonFiniteError(RuntimeError):
    """A batch, a loss or a gradient is not finite."""


class FiniteGuard(Callback):
    """Stops before a step that would spoil the weights, says what went wrong first, and saves the last good ones.

    Checked are each training batch, and before each step of the optimizer the loss and the gradients (with fp16
    scaling, which lets gradients overflow on purpose, the loss alone); under DDP all ranks stop together. The error
    names the step and, if the module is :class:`~eigenscope.protocols.Traced`, the first tensor that is not finite
    and the sample it was found in. ``last_good.ckpt``, beside the other checkpoints, is the state before that step; a
    ``fast_dev_run`` leaves none. ``stopped.json`` in the log folder is the record that ``compare`` reads.

    Raises:
        NonFiniteError: something is not finite.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._losses_finite: Tensor | None = None  # of the batches since the last step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Checks the batch."""
        self._batch = batch
        finite = [tensor.isfinite().all() for tensor in _float_tensors(batch)]
        self._stop_unless(trainer, pl_module, torch.stack(finite).all() if finite else None)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes whether the loss is finite."""
        finite = loss.detach().isfinite()
        self._losses_finite = finite if self._losses_finite is None else self._losses_finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks losses and gradients."""
        finite, self._losses_finite = self._losses_finite, None
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [gradient for gradient in gradients if gradient is not None]
        if gradients and finite is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            finite = finite & torch.nn.utils.get_total_norm(gradients).isfinite()
        self._stop_unless(trainer, pl_module, finite)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Explains an eigensolver's refusal of a matrix that is not finite."""
        if isinstance(exception, LinAlgError) and trainer.training and self._batch is not None:
            exception.add_note(self._report(trainer, pl_module, together=False))

    def _stop_unless(self, trainer: Trainer, pl_module: LightningModule, finite: Tensor | None) -> None:
        if finite is None:
            return
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce((~finite).float(), reduce_op="sum") == 0
        if not finite:
            raise NonFiniteError(self._report(trainer, pl_module, together=True))

    def _report(self, trainer: Trainer, pl_module: LightningModule, together: bool) -> str:
        found = _first_non_finite(pl_module, self._batch)
        if trainer.is_global_zero and trainer.logger is not None and trainer.logger.log_dir is not None:
            StoppedRun(trainer.global_step, found).save(Path(trainer.logger.log_dir) / "stopped.json")
        return f"step {trainer.global_step}: {found}; {self._save(trainer, together)}"

    def _save(self, trainer: Trainer, together: bool) -> str:
        if getattr(trainer, "fast_dev_run", False):
            return "a fast_dev_run saves no checkpoint"
        if trainer.world_size > 1 and not together:
            return "no checkpoint was saved, which takes all ranks"
        folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.log_dir or trainer.default_root_dir
        path = Path(folder) / "last_good.ckpt"
        trainer.save_checkpoint(path)
        return f"the state before it is in {path}"


def _first_non_finite(pl_module: LightningModule, batch: Any) -> str:
    if isinstance(pl_module, Traced):
        for name, tensor in pl_module.trace(batch):
            samples = (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[:, 0]
            if len(samples):
                kinds = sorted({pl_module.describe(batch, int(sample)) for sample in samples})
                return f"the first tensor that is not finite is '{name}', in samples of {', '.join(kinds)}"
    elif any(not tensor.isfinite().all() for tensor in _float_tensors(batch)):
        return "the batch is not finite"
    for name, parameter in pl_module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the batch and the loss are finite, the gradient of '{name}' is not"
    return "the loss, or a batch of another rank, is not finite"


def _float_tensors(batch: Any) -> list[Tensor]:
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
