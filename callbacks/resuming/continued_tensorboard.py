"""TensorBoard event files of a resumed run, without duplicate or missing points."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from eigenscope.adapters.tensorboard_names import read_events, write_events


class ContinuedBoard(Callback):
    """Rewrites the events logged before the checkpoint that TensorBoard would drop when a run is resumed.

    A writer with ``purge_step`` makes TensorBoard forget all that a run logged from that step on, which it had gone on
    to after its checkpoint. But trainer and callbacks count what they log between two steps by the one before or the
    one after: forgetting less would leave points doubled, forgetting more lose some. Here the step is the first that
    the resumed run takes, and of what was there when the checkpoint was saved it gets back all that it does not log
    itself before its first batch.

    Args:
        step: the logger's ``purge_step``.
        saved_at: when the checkpoint was saved, in seconds since 1970; None if it does not say, and nothing is written.
    """

    def __init__(self, step: int, saved_at: float | None) -> None:
        self.step = step
        self.saved_at = saved_at
        self._events: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads what was there when the checkpoint was saved."""
        folder = trainer.log_dir  # on every rank: Lightning broadcasts it
        if stage == "fit" and trainer.is_global_zero and folder is not None and self.saved_at is not None:
            self._events = board_events(_event_files(Path(folder)), self.step, until=self.saved_at)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes before the first batch, after all callbacks that log before it."""
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes if there was no batch to train."""
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes if it did not come to a batch."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        events, self._events = self._events, []
        if not events or trainer.logger is None:
            return
        writer = cast(Any, trainer.logger).experiment
        writer.flush()
        latest = max(_event_files(Path(writer.log_dir)), key=lambda file: file.stat().st_mtime_ns)  # just flushed
        again = {_place(event) for event in board_events([latest], self.step)}
        write_events(writer, (event for event in events if _place(event) not in again))


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.[0-9]*"))  # without the one of the HPARAMS page


def _place(event: Any) -> tuple[int, tuple[str, ...]]:
    return event.step, tuple(value.tag for value in event.summary.value)


def board_events(files: Iterable[Path], step: int, until: float = math.inf) -> list[Any]:
    """The events from a step on, in the order in which they were logged, without those that a restart made forgotten.

    Args:
        files: event files, in order of time.
        step: the first.
        until: seconds since 1970; what was logged later is passed over, restarts too.

    Returns:
        Protocol buffers with step, time and values, each of which has a tag.
    """
    kept: list[Any] = []
    for event, starts in read_events(files):
        if event.wall_time > until:
            continue
        if starts:
            kept = [other for other in kept if other.step < event.step]
        elif event.HasField("summary") and event.step >= step:
            kept.append(event)
    return kept
