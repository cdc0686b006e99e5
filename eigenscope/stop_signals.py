"""Stop signals: which ones ask a run to end, and when it does."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: Ctrl-C; batch systems, ``timeout`` and ``kill``; a closed terminal; warnings of batch systems; a used up CPU time.
STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)

_ALWAYS = (signal.SIGINT, signal.SIGTERM)  # the others only where nobody has given them another meaning
_SAME = 1.0  # seconds in which a second Ctrl-C is the first: a launcher hands on what the terminal sent as well
_STUCK = 3.0  # seconds after which a main thread that has not heard a signal is waiting for what may never come


class StopRequested(SystemExit):
    """A stop signal came where nothing is left to do first.

    Attributes:
        signal: which one.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)  # as a shell has it of a process that a signal ended
        self.signal = signal.Signals(signum)

    def __str__(self) -> str:
        return f"{self.signal.name} ended the run at once; no checkpoint was saved of that moment"


class StopSignals:
    """Hears the stop signals of this process: raises :class:`StopRequested`, or notes them for a while.

    A signal that is ignored when listening begins, as SIGINT is in a background job of a shell, stays ignored. Once one
    has come, more of them are the same request (a batch system and a launcher often send each its own), but for
    Ctrl-C, which ends a run at once if it comes again after a second.

    Attributes:
        received: the first signal that has come; None if none has.
        raised: for which :class:`StopRequested` was raised; None if it was not.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.raised: signal.Signals | None = None
        self._since = 0.0
        self._defers = self._ending = self._listens = False
        self._before: dict[int, Any] = {}
        self._process = 0
        self._wakeup: tuple[int, int] | None = None

    def listen(self) -> None:
        """Raises :class:`StopRequested` from now on, whatever the main thread is at; nothing in another thread.

        A main thread that does not get to hear a signal within seconds, as one that waits for other ranks in a
        library, is not waited for: the process ends as if it had.
        """
        if threading.current_thread() is threading.main_thread():
            self.received, self._defers, self._ending, self._listens = None, False, False, True
            self.raised = None
            self._before = dict(self._before)  # another than before: a new time of listening
            self._install()
            self._watch()

    def defer(self) -> None:
        """Notes signals in ``received`` from now on; nothing outside of the main thread."""
        if threading.current_thread() is threading.main_thread():
            if not self._listens and not self._defers:
                self.received, self._ending = None, False
            self._defers = True
            self._install()

    def end(self) -> None:
        """Takes no more signals until :meth:`release`: the run is on its way out."""
        self._ending = True

    def release(self) -> None:
        """Ends what :meth:`defer` began."""
        self._defers = self._ending = False
        if not self._listens:
            self._hand_back()

    def note(self, signum: int | None) -> None:
        """Counts a signal that somebody else has handled: the next one is no news. Only while listening."""
        if self._listens and self.received is None and signum is not None:
            self.received = signal.Signals(signum)

    def forget(self) -> None:
        """Forgets what came to a run before; nothing while listening."""
        if not self._listens:
            self.received = None

    def close(self) -> None:
        """Ends what :meth:`listen` began. If a signal has come, the process is about to end: more change nothing."""
        self._listens = self._defers = False
        self._ending = self.received is not None
        if not self._ending:
            self._hand_back()
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup[1])  # its reader closes the other
            self._wakeup = None

    def after_fork(self) -> None:
        """Keeps a forked child from writing the numbers of its signals into the pipe of its parent."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            self._wakeup = None

    def _install(self) -> None:
        self._process = os.getpid()
        for number in STOP_SIGNALS:
            now = signal.getsignal(number)
            free = now != signal.SIG_IGN if number in _ALWAYS else now == signal.SIG_DFL
            if now != self._hear and free:
                signal.signal(number, self._hear)
                self._before.setdefault(number, now)

    def _hand_back(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked since, and does not know what to do
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        first = self.received is None
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
        insists = number == signal.SIGINT and time.monotonic() - self._since > _SAME
        if (not self._ending and first and not self._defers) or (insists and (not self._ending or not self._listens)):
            self.raised = signal.Signals(number)
            raise StopRequested(number)

    def raise_again(self) -> None:
        """Raises :class:`StopRequested` if it was raised within code that made another error of it, as of an import."""
        if self._listens and self.raised is not None:
            raise StopRequested(self.raised)

    def _watch(self) -> None:
        """Reads, in a thread, the numbers that Python's handler in C writes as soon as a signal comes."""
        if self._wakeup is not None or os.name != "posix":
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        if signal.set_wakeup_fd(write, warn_on_full_buffer=False) != -1:  # somebody else's, as asyncio's
            return
        self._wakeup = read, write
        threading.Thread(target=self._look_after, args=(read,), name="stop-signals", daemon=True).start()

    def _look_after(self, read: int) -> None:
        while number := os.read(read, 1):
            if number[0] in STOP_SIGNALS:
                threading.Thread(target=self._end_if_stuck, args=(number[0], self._before), daemon=True).start()
        os.close(read)

    def _end_if_stuck(self, number: int, before: dict[int, Any]) -> None:
        time.sleep(_STUCK)
        listens = self._listens and before is self._before and signal.getsignal(number) == self._hear
        if listens and self.received is None and not self._defers:
            if is_first_rank():
                with suppress(OSError):
                    os.write(2, f"{StopRequested(number)}\n".encode())
            os._exit(128 + number)


#: Of this process.
stop_signals = StopSignals()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=stop_signals.after_fork)


def is_first_rank() -> bool:
    """Whether this process is the first of a run's ranks, by the variables of its launcher: it speaks for all."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes that are started within the block begin without hearing stop signals, until they unblock them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
