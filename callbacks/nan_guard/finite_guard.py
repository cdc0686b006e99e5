"""NaN/Inf guard: stops training before a non-finite loss or gradient reaches the weights, or skips the step."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out
from torch.optim import Optimizer

from eigenscope.callbacks._output import checkpoint_folder, print_beside_bar, run_folder
from eigenscope.callbacks.nan_guard.first_non_finite import first_non_finite, float_tensors, non_finite_weight
from eigenscope.callbacks.nan_guard.step_snapshot import StepSnapshot
from eigenscope.charts import Chart, present
from eigenscope.random_state import random_state, set_random_state
from eigenscope.results import StoppedRun
from eigenscope.results.run_metadata import update_record

NonFinitePolicy = Literal["stop", "skip"]


class NonFiniteError(RuntimeError):
    """A batch, a loss or a gradient is not finite."""


class FiniteGuard(Callback):
    """Stops before a step that would corrupt the weights with NaN or Inf, or skips it; names the tensor that was first.

    Checked are each training batch, and before each step of the optimizer the loss and the gradients; gradients that
    overflow under a loss scale above 1 (precision ``16-mixed``) are left to the scaler, which skips the step and halves
    the scale. Large finite values pass at every precision. Under DDP all ranks stop or skip together. The
    message names the step, the module and the first tensor that is not finite, found by computing the step once more
    (under DDP of the rank on which it began), and the samples if the module is
    :class:`~eigenscope.protocols.Traced`.

    ``stop`` saves ``last_good.ckpt``, beside the other checkpoints: the state before that step (a ``fast_dev_run``
    leaves none); the run metadata in its log folder say that it was stopped.

    ``skip`` drops the step's gradients before the optimizer sees them, so that weights and the optimizer's state stay
    as they are, and puts back metrics and buffers, so that metrics of the epoch are those of the other steps; with
    accumulated gradients the step is all of its batches. Schedules and step counters advance. Each skip is one line;
    how many there were is logged as ``skipped_steps`` and kept in checkpoints. A weight that is not finite, an
    eigensolver's refusal of a matrix, and one step more than ``max_skipped``, over all resumes, stop the run.

    Args:
        policy: ``stop`` or ``skip``.
        max_skipped: steps that ``skip`` passes over.

    Raises:
        ValueError: an argument is out of range.
        NonFiniteError: something is not finite.
    """

    affects_training = False

    def __init__(self, policy: NonFinitePolicy = "stop", max_skipped: int = 10) -> None:
        if policy not in get_args(NonFinitePolicy):
            raise ValueError(f"policy must be 'stop' or 'skip', got {policy!r}")
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {max_skipped}")
        self.policy = policy
        self.max_skipped = max_skipped
        self.skipped = 0
        self._forget()

    def _forget(self) -> None:
        self._batch: Any = None  # the latest, or the first since the last step whose loss was not finite
        self._batch_idx = 0
        self._finite: Tensor | None = None  # whether all losses since the last step are
        self._found: str | None = None  # of a batch since the last step
        self._before: StepSnapshot | None = None
        self._replaced: list[tuple[Tensor, Tensor]] = []  # parts of the batch, and what they were

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resets the state of a previous fit."""
        if stage == "fit":
            self.skipped = 0
            self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Checks the batch."""
        if self._before is None:
            self._before = StepSnapshot(trainer, pl_module)
        elif self._finite is None:
            self._before.take()
        if self._finite is None or self._finite:
            self._batch, self._batch_idx = batch, batch_idx
        tensors = list(float_tensors(batch))
        if self._everywhere(trainer, _sums_are_finite(tensors)):
            return
        finite = _entries_are_finite(tensors)
        if self._everywhere(trainer, finite):
            return
        self._found = self._found or self._find(trainer, pl_module, not bool(finite), together=True)
        self._stop_unless_skipped(trainer, pl_module)
        self._finite = torch.zeros((), dtype=torch.bool, device=pl_module.device)
        # the step is computed all the same, as other ranks wait for its gradients; what eigensolvers refuse is left out
        self._replaced = [(tensor, tensor.clone()) for tensor in float_tensors(batch)]
        for tensor, _ in self._replaced:
            tensor.nan_to_num_(0.0, 0.0, 0.0)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes whether the loss is finite."""
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks losses and gradients; drops the gradients of a step that is to be skipped."""
        if self._finite is None:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not self._everywhere(trainer, self._finite & _sums_are_finite(gradients)) and not (
            self._everywhere(trainer, self._finite)
            and (self._everywhere(trainer, _entries_are_finite(gradients)) or _loss_is_scaled(trainer))
        ):
            self._found = self._found or self._find(trainer, pl_module, not bool(self._finite), together=True)
            self._stop_unless_skipped(trainer, pl_module)
            for parameter in parameters:
                parameter.grad = None
            self._skip(trainer, pl_module)
        self._finite = self._found = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Gives the batch back as it was, and logs at the end of the epoch."""
        for tensor, before in self._replaced:
            tensor.copy_(before)
        self._replaced = []
        if self._finite is None:
            self._batch = None  # not kept in memory while the next one is made
        if self.policy == "skip" and trainer.is_last_batch:
            count = float(self.skipped)
            pl_module.log("skipped_steps", count, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Explains an eigensolver's refusal of a matrix that is not finite."""
        if isinstance(exception, LinAlgError) and trainer.training and self._batch is not None:
            found = self._find(trainer, pl_module, self._finite is not None and not self._finite, together=False)
            exception.add_note(self._stopped(trainer, found, together=False))

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """How many steps were skipped."""
        return present([Chart("Training and validation", "skipped steps so far", ("skipped_steps",))], logged)

    def state_dict(self) -> dict[str, Any]:
        """How many steps were skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the count of skipped steps."""
        self.skipped = state_dict.get("skipped", 0)

    def _everywhere(self, trainer: Trainer, finite: Tensor) -> bool:
        if trainer.world_size > 1:
            spoiled = (~finite).float().to(trainer.strategy.root_device)
            finite = trainer.strategy.reduce(spoiled, reduce_op="sum") == 0
        return bool(finite)

    def _find(self, trainer: Trainer, pl_module: LightningModule, here: bool, together: bool) -> str:
        """What was not finite, on the first rank where it was more than a gradient that ranks share."""
        before = cast(StepSnapshot, self._before)
        after = random_state(pl_module.device)
        before.restore_streams()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            finite = self._finite is None or bool(self._finite)
            found = first_non_finite(pl_module, self._batch, self._batch_idx, finite)
        before.restore()
        set_random_state(after, pl_module.device)
        if together and trainer.world_size > 1:
            reports = [trainer.strategy.broadcast((here, found), src=rank) for rank in range(trainer.world_size)]
            rank = next((rank for rank, (where, _) in enumerate(reports) if where), 0)
            found = f"rank {rank}: {reports[rank][1]}"
        return found or "a loss or gradient was not finite, though it is when computed again"

    def _stop_unless_skipped(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = cast(str, self._found)
        if self.policy == "skip":
            weight = non_finite_weight(pl_module)
            if weight is None and self.skipped < self.max_skipped:
                return
            reason = f"after {self.skipped} skipped steps, of at most {self.max_skipped}"
            found = f"{found}, {reason if weight is None else 'and that cannot be skipped'}"
        raise NonFiniteError(self._stopped(trainer, found, together=True))

    def _skip(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cast(StepSnapshot, self._before).restore()
        self.skipped += 1
        text = f"step {trainer.global_step} is skipped, {self.skipped} of at most {self.max_skipped}: {self._found}"
        print_beside_bar(trainer, pl_module, text)
        for logger in trainer.loggers:
            logger.log_metrics({"skipped_steps": self.skipped}, step=trainer.global_step)

    def _stopped(self, trainer: Trainer, found: str, together: bool) -> str:
        folder = run_folder(trainer)
        if folder is not None:
            update_record(folder, stopped=StoppedRun(trainer.global_step, found))
        return f"step {trainer.global_step}: {found}; {self._save(trainer, together)}"

    def _save(self, trainer: Trainer, together: bool) -> str:
        if getattr(trainer, "fast_dev_run", False):
            return "a fast_dev_run saves no checkpoint"
        if trainer.world_size > 1 and not together:
            return "no checkpoint was saved, which takes all ranks"
        path = Path(checkpoint_folder(trainer)) / "last_good.ckpt"
        before = cast(StepSnapshot, self._before)
        before.restore_streams()
        before.restore_counts()
        trainer.save_checkpoint(path)
        return f"the state before it is in {path}"


def _sums_are_finite(tensors: list[Tensor]) -> Tensor:
    """Whether the sums of all tensors are finite, a scalar bool on their device, without waiting for it.

    They are not if an entry is not. Finite entries whose sum overflows need a second look.
    """
    if not tensors:
        return torch.ones((), dtype=torch.bool)
    if tensors[0].device.type != "cpu":  # a few kernels for all tensors
        return torch.nn.utils.get_total_norm(tensors, norm_type=1.0).isfinite()
    return torch.stack([tensor.sum(dtype=_wide(tensor)) for tensor in tensors]).sum().isfinite()


def _entries_are_finite(tensors: list[Tensor]) -> Tensor:
    """Whether every entry is finite, as :func:`_sums_are_finite` answers, however large they are."""
    if not tensors:
        return torch.ones((), dtype=torch.bool)
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which a sum is taken: at least single precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _loss_is_scaled(trainer: Trainer) -> bool:
    """Whether gradients may overflow because of the loss scale of ``16-mixed``, which its scaler then halves."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() > 1.0
