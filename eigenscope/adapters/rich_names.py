"""rich's private names: the lock of a progress bar."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from eigenscope.adapters import Library, MissingNameError, report_fallback

_RICH = Library("rich")


def redraw_lock(progress: Any) -> AbstractContextManager[Any]:
    """A context in which the thread that redraws a ``rich.progress.Progress`` waits.

    Returns:
        An empty context, and a note on stderr, where rich has no such lock.
    """
    try:
        lock: AbstractContextManager[Any] = _RICH.get(progress.live, "_lock")
    except MissingNameError as missing:
        report_fallback("lines printed while the progress bar is redrawn may be lost", missing)
        return nullcontext()
    return lock
