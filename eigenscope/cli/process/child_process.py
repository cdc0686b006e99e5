"""Child process that ends with its parent and receives the parent's signals."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from eigenscope.cli.process.lost_ranks import LAUNCHER
from eigenscope.stop_signals import STOP_SIGNALS, stop_signals

_POLL = 0.1  # seconds


def run_child(command: list[str], is_ready: Callable[[], bool]) -> tuple[int, signal.Signals | None]:
    """Runs a command to its end, and hands on the signals that are to end this process in the meantime.

    The command has a session of its own, so that Ctrl-C reaches it as often as this process was sent it and no more.
    SIGINT is handed on as it came; other stop signals, and all before ``is_ready``, as SIGTERM. Ctrl-Z pauses both.
    Signals that this process ignores are left alone. Outside of the main thread, and on Windows, nothing is handed on.

    Args:
        command: and its arguments. It is told that :func:`eigenscope.cli.process.lost_ranks.end_with_launcher` is to
            watch this process.
        is_ready: whether the command has a handler for SIGINT by now, which Python else meets with a traceback.

    Returns:
        Its exit code, negative if a signal ended it, and the first signal that was to end this process.
    """
    environment = os.environ | {LAUNCHER: str(os.getpid())}
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return subprocess.run(command, check=False, env=environment).returncode, None
    with _noted() as noted:
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        told = 0
        while True:
            # here rather than in the handler: it could run before there is a process, or between two lines of this
            for number in noted[told:]:
                told += 1
                if number == signal.SIGTSTP:
                    _pause(process.pid)
                else:
                    process.send_signal(number if number == signal.SIGINT and is_ready() else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_POLL)
                return code, next((number for number in noted if number != signal.SIGTSTP), None)


@contextmanager
def _noted() -> Iterator[list[signal.Signals]]:
    """The signals that arrive within the block, instead of what they would do."""
    noted: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(signal.Signals(number))

    heeded = [each for each in [*STOP_SIGNALS, signal.SIGTSTP] if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield noted
    finally:
        stop_signals.note(next((number for number in noted if number != signal.SIGTSTP), None))
        for number, handler in before.items():
            signal.signal(number, handler)


def _pause(session: int) -> None:
    """Stops a session and this process until somebody lets this process continue."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGCONT)
