"""The resume checkpoint, ``last.ckpt``, and the CheckpointIO plugin that writes and reads checkpoints safely."""

import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import CheckpointIO

from eigenscope.adapters.lightning_averaging import checkpoint_before_averages, has_replaced_weights
from eigenscope.adapters.lightning_checkpoints import checkpoint_of_next_batch
from eigenscope.adapters.lightning_names import callbacks_of, keep_signals
from eigenscope.callbacks._output import checkpoint_folder
from eigenscope.checkpoints import TRAINED, previous_checkpoint, read_checkpoint, write_checkpoint
from eigenscope.loader_processes import guard_loader_processes
from eigenscope.stop_signals import StopRequested, stop_signals


class TrainingInterrupted(RuntimeError):
    """Training was ended by a signal, after a checkpoint.

    Attributes:
        signal: which one.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signal = signal.Signals(signum)


class ResumeCheckpoint(Checkpoint):
    """Saves the resume checkpoint ``last.ckpt``, from which a run resumes as if it had never been interrupted.

    It is saved between two steps of the optimizer: after every epoch, when its validation and its metrics are done,
    at the end of the training, after every ``every_n_steps`` steps, and when a signal ends the run: SIGINT (Ctrl-C),
    SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU, to the process or to all processes of the run. The step under way
    comes to its end first. A validation under way is left, and begins again when the run is resumed; only one after
    the last step of ``max_steps`` comes to its end, since Lightning resumes nothing after it. A signal before the first
    step saves the checkpoint of step 0. Further signals change nothing, but Ctrl-C after more than a second ends the
    run at once. A signal that is ignored when training starts, as SIGINT is in a background job of a shell, stays
    ignored; a handler that a program has given SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU stays.

    Under DDP a signal to one rank ends all of them after the same step. Logs are flushed before it is saved, so that
    they reach as far as the checkpoint does. Lightning's own requeueing under SLURM is off: it saves in the middle of a
    step; the batch script requeues.

    The file is replaced as a whole and the one before it is kept, see :mod:`eigenscope.checkpoints`.

    Args:
        every_n_steps: steps of the optimizer between two savings within an epoch; None saves after epochs alone.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
        TrainingInterrupted: a signal came.
    """

    affects_training = False

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 or None, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.dirpath: str | None = None
        self._saved_step = 0
        self._common_batches = 0.0
        self._last: dict[str, Any] | None = None  # what to save at the end in place of the state there

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees on the folder: that of the other checkpoints, else ``checkpoints`` in the run's; notes signals."""
        guard_loader_processes()
        keep_signals(trainer)
        self.dirpath = None
        self.dirpath = str(trainer.strategy.broadcast(checkpoint_folder(trainer)))
        if stage == "fit":
            stop_signals.defer()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes which step is saved already."""
        self._saved_step, self._last = trainer.global_step, None
        stop_signals.defer()  # again, if Lightning has installed its own handlers nevertheless

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves the state after the previous step, if it is due or a signal has come."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are no part of a checkpoint
        step = trainer.global_step
        signum = _agreed_signal(trainer)
        if signum:
            self._stop(trainer, signum)
        due = batch_idx == 0 or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if due and step > self._saved_step:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agrees on the batches that every rank has: where ranks have more or fewer, they cannot agree on a signal."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        mine = float(min(batches, default=0))
        self._common_batches = _agreed(trainer, 0.0 if mine == float("inf") and trainer.world_size > 1 else mine, "min")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leaves the validation, if a signal has come."""
        if trainer.state.fn != "fit" or batch_idx >= self._common_batches:
            return
        last = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        signum = 0 if last or (trainer.sanity_checking and not batch_idx) else _agreed_signal(trainer)
        if signum and trainer.sanity_checking:
            raise StopIteration  # on to the first step, where the checkpoint is saved
        if signum:
            for callback in callbacks_of(trainer):
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)  # one of the two puts the weights back
                    callback.on_validation_end(trainer, pl_module)
            self._stop(trainer, signum)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the state is another than before the validation, which may have been saved."""
        if not trainer.sanity_checking:
            self._saved_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the state of a run that ``max_steps`` ends within an epoch, which then ends as if it were whole."""
        if trainer.global_step == trainer.max_steps and not trainer.is_last_batch:
            self._last = checkpoint_of_next_batch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state."""
        self._last = checkpoint_before_averages(trainer) or self._last
        if self._last is not None and has_replaced_weights(trainer):
            self._last.setdefault(TRAINED, self._last["state_dict"])
            self._last["state_dict"] = pl_module.state_dict()
        if trainer.global_step > self._saved_step or self._last is not None:
            self._save(trainer)
        signum = _agreed_signal(trainer)
        stop_signals.received = signal.Signals(signum) if signum else None
        stop_signals.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the signal handlers, and lets no rank end before the first has recorded why."""
        if isinstance(exception, TrainingInterrupted):
            trainer.strategy.barrier()
        elif isinstance(exception, StopRequested) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(exception.signal)  # the ranks that this one started need not have heard it
        stop_signals.release()

    def _stop(self, trainer: Trainer, signum: int) -> None:
        stop_signals.end()
        path = self._save(trainer)
        name = signal.Signals(signum).name
        where = f"to resume: --ckpt_path {path}" if path else "a fast_dev_run saves no checkpoint"
        raise TrainingInterrupted(f"{name} ended the run after step {trainer.global_step}; {where}", signum)

    def _save(self, trainer: Trainer) -> Path | None:
        if getattr(trainer, "fast_dev_run", False):
            return None
        for logger in trainer.loggers:
            logger.save()
        path = Path(self.dirpath or "") / "last.ckpt"
        before = self._last or checkpoint_before_averages(trainer)
        if before is None:
            trainer.save_checkpoint(path)
        else:
            trainer.strategy.save_checkpoint(before, path)
            trainer.strategy.barrier("ResumeCheckpoint")
        self._saved_step = trainer.global_step
        return path


def _agreed_signal(trainer: Trainer) -> int:
    """The number of a signal that has come to some rank, 0 if none has."""
    return int(_agreed(trainer, float(stop_signals.received or 0), "max"))


def _agreed(trainer: Trainer, mine: float, how: str) -> float:
    """The largest or smallest of the ranks' numbers."""
    if trainer.world_size == 1:
        return mine
    value = torch.tensor(mine, device=trainer.strategy.root_device, dtype=torch.float32)
    agreed: Any = trainer.strategy.reduce(value, reduce_op=how)
    return float(agreed)


class SafeCheckpointIO(CheckpointIO):
    """CheckpointIO plugin: atomic writes, one backup, and loading without executing code.

    A plugin of the trainer, over :mod:`eigenscope.checkpoints`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a file atomically."""
        if storage_options is not None:
            raise ValueError("storage_options are for other kinds of storage than files")
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file, or the one before it if that is damaged; plain values and tensors only."""
        return read_checkpoint(Path(path), "cpu" if callable(map_location) else map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a file and the one before it."""
        for file in (Path(path), previous_checkpoint(Path(path))):
            file.unlink(missing_ok=True)
