"""The resume checkpoint, ``last.ckpt``, and the CheckpointIO plugin that writes and reads checkpoints safely."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from eigenscope.checkpoints import previous_checkpoint, read_checkpoint, write_checkpoint

_STOPPING = (signal.SIGINT, signal.SIGTERM)


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
    at the end of the training, after every ``every_n_steps`` steps, and when SIGINT (Ctrl-C) or SIGTERM ends the run.
    Then the step under way comes to its end, and so does a validation under way; a second signal ends the run at
    once. A signal that is ignored when training starts, as SIGINT is in a background job of a shell, stays ignored.
    Under DDP a signal to one rank ends all of them after the same step. Logs are flushed before it is saved, so that
    they reach as far as the checkpoint does.

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
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees on the folder: that of the other checkpoints, else the log folder's ``checkpoints``."""
        others = [
            getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks if callback is not self
        ]
        folder = next((other for other in others if other), None) or os.path.join(
            trainer.log_dir or trainer.default_root_dir, "checkpoints"
        )
        self.dirpath = str(trainer.strategy.broadcast(folder))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces Lightning's signal handlers, which would interrupt a step."""
        self._saved_step, self._signal = trainer.global_step, None
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._note) for number in heeded}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves the state after the previous step, if it is due or a signal has come."""
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients are no part of a checkpoint
        step = trainer.global_step
        signum = self._agreed_signal(trainer)
        due = batch_idx == 0 or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if signum or (due and step > self._saved_step):
            path = self._save(trainer)
        if signum:
            name = signal.Signals(signum).name
            where = f"to resume: --ckpt_path {path}" if path else "a fast_dev_run saves no checkpoint"
            raise TrainingInterrupted(f"{name} ended the run after step {step}; {where}", signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state."""
        self._hand_back()
        if trainer.global_step > self._saved_step:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the signal handlers."""
        self._hand_back()

    def _save(self, trainer: Trainer) -> Path | None:
        if getattr(trainer, "fast_dev_run", False):
            return None
        for logger in trainer.loggers:
            logger.save()
        path = Path(self.dirpath or "") / "last.ckpt"
        trainer.save_checkpoint(path)
        self._saved_step = trainer.global_step
        return path

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            self._hand_back()
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        self._signal = signum

    def _agreed_signal(self, trainer: Trainer) -> int:
        mine = self._signal or 0
        if trainer.world_size == 1:
            return mine
        signals = torch.tensor(mine, dtype=torch.int64, device=trainer.strategy.root_device)
        highest: Any = trainer.strategy.reduce(signals, reduce_op="max")
        return int(highest)

    def _hand_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


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
