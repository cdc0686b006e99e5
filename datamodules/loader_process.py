"""What a process of a loader does beside loading: it ends with its training, and with what it cannot send."""

import multiprocessing
import os
import threading
import traceback
from multiprocessing.queues import Queue


def watch(worker: int) -> None:
    """Called in every process of a loader as it starts.

    Args:
        worker: its number.
    """
    threading.Thread(target=_end_with_training, daemon=True).start()
    Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # type: ignore[attr-defined]


def _end_with_training() -> None:
    """Ends the process when its training was killed.

    torch has it look after the process that forked it. Where that is a fork server, as from Python 3.14 on, the two
    keep each other alive.
    """
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _end_unsent(error: Exception, batch: object) -> None:
    """Ends the process when a batch found no room in shared memory: the training would wait for it for ever."""
    try:
        traceback.print_exception(error)
    finally:  # also if nobody reads stderr any more
        os._exit(1)
