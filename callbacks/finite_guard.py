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
        self._batch: Any = None  # the latest, or the first since the last step whose loss was not finite
        self._finite: Tensor | None = None  # whether all losses since the last step are

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets a fit that did not come to its end."""
        self._batch = self._finite = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Checks the batch."""
        if self._finite is None or self._finite:
            self._batch = batch
        self._stop_unless(trainer, pl_module, _all_finite(_float_tensors(batch)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes whether the loss is finite."""
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks losses and gradients."""
        finite = self._finite
        if finite is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
            finite = finite & _all_finite([gradient for gradient in gradients if gradient is not None])
        self._stop_unless(trainer, pl_module, finite)
        self._finite = None

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
        loss_finite = self._finite is None or bool(self._finite)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            found = _first_non_finite(pl_module, self._batch, loss_finite)
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


def _first_non_finite(pl_module: LightningModule, batch: Any, loss_finite: bool) -> str:
    if isinstance(pl_module, Traced):
        for name, tensor in pl_module.trace(batch):
            samples = (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[:, 0]
            if len(samples):
                kinds = sorted({pl_module.describe(batch, int(sample)) for sample in samples})
                return f"the first tensor that is not finite is '{name}', in samples of {', '.join(kinds)}"
    elif any(not tensor.isfinite().all() for tensor in _float_tensors(batch)):
        return "the batch is not finite"
    if not loss_finite:
        return "the training loss is not finite, though all that was traced is"
    for name, parameter in pl_module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the batch and the loss are finite, the gradient of '{name}' is not"
    return "a batch, loss or gradient of another rank is not finite"


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether every entry is, a scalar bool on the tensors' device, without waiting for it."""
    if not tensors:
        return torch.ones((), dtype=torch.bool)
    # a sum of magnitudes overflows only where they are about to; the largest of them takes four times as long on a CPU
    return torch.nn.utils.get_total_norm(tensors, norm_type=1.0).isfinite()


def _float_tensors(batch: Any) -> list[Tensor]:
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else [batch]
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
