"""Processes of data loaders: they live as long as the loader that started them, whoever is sent a signal."""

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType

from eigenscope.adapters.python_names import on_unsent
from eigenscope.adapters.torch_names import wrap_loader_start
from eigenscope.stop_signals import STOP_SIGNALS, stop_signals_blocked

_guarded: "weakref.WeakSet[BaseProcess]" = weakref.WeakSet()


def guard_loader_processes() -> None:
    """Guards the processes of every ``DataLoader`` that this process begins to read from now on, whoever made it.

    A batch system, ``timeout`` and a terminal send their signals to all processes of a run. Those of its loaders pass
    them over: the training still needs batches to come to the end of its step, and ends them itself. They end with a
    training that is killed, and when a batch finds no room in shared memory.
    """
    wrap_loader_start(_starting, begin)


def begin(given: Callable[[int], None] | None, worker: int) -> None:
    """Called in every process of a loader as it starts.

    Args:
        given: the loader's own ``worker_init_fn``.
        worker: its number.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _pass_over)  # not SIG_IGN: programs that a data set starts would inherit that
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_with_training, daemon=True).start()
    on_unsent(_end_unsent)
    if given is not None:
        given(worker)


def _pass_over(number: int, frame: FrameType | None) -> None:
    pass


@contextmanager
def _starting(method: str) -> Iterator[None]:
    """Around the start of a loader's processes: signals wait until they are ready, and SIGKILL ends them."""
    if method != "fork":
        with stop_signals_blocked():
            resource_tracker.ensure_running()  # here, because it unblocks some of the signals
    before = set(multiprocessing.active_children())
    with stop_signals_blocked():
        yield
    for process in set(multiprocessing.active_children()) - before:
        process.terminate = process.kill  # type: ignore[method-assign]
        _guarded.add(process)
    atexit.unregister(_end_all)
    atexit.register(_end_all)  # the latest first: before multiprocessing would wait for them


def _end_all() -> None:
    """Ends the processes of loaders that are still there as Python ends, where torch leaves them to multiprocessing."""
    alive = [process for process in _guarded if process.is_alive()]
    if alive and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take their ends for a fault
    for process in alive:
        process.kill()


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
