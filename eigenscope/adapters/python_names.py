"""The standard library's private names: what a queue does with an object that it cannot send."""

from collections.abc import Callable
from multiprocessing.queues import Queue

from eigenscope.adapters import Library, MissingNameError, report_fallback

_PYTHON = Library("Python")


def on_unsent(handler: Callable[[Exception, object], None]) -> None:
    """Calls a function, instead of printing, when a queue of this process cannot send an object.

    Without the name Python prints, and stderr says what follows.

    Args:
        handler: takes the error and the object.
    """
    try:
        _PYTHON.set(Queue, "_on_queue_feeder_error", staticmethod(handler))
    except MissingNameError as missing:
        report_fallback("a batch that finds no room in shared memory may be waited for without end", missing)
