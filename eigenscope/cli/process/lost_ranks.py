"""Ends of ranks: by a signal, or because another rank, or the process that launched it, is gone."""

import os
import signal
import sys
import textwrap
import threading
import time
from typing import NoReturn

from eigenscope.stop_signals import is_first_rank

#: The variable in which a process that starts a run says who it is.
LAUNCHER = "EIGENSCOPE_LAUNCHER"

_POLL = 0.5  # seconds
_OF_OTHERS = ("gloo/transport", "ncclRemoteError", "remote process exited")  # in the messages of gloo and NCCL
_AT_START = ("connectFullMesh", "gloo/transport/tcp/device.cc", "Connection refused", "No route to host")
_SHORT = 300  # letters


def explain_lost_rank(error: BaseException) -> str | None:
    """A sentence for the error of a collective whose other ranks are gone, which is no fault of this rank.

    Args:
        error: whatever ended the run.

    Returns:
        The sentence, with the first line of the error; None if the error is another. Of a rank that never was
        connected it says so, and what may be wrong.
    """
    message = str(error)
    if not isinstance(error, RuntimeError) or not any(part in message for part in _OF_OTHERS):
        return None
    first = textwrap.shorten(message.strip().partition("\n")[0], _SHORT, placeholder=" …")
    if any(part in message for part in _AT_START):
        return (
            f"rank {_rank()} could not connect to the other ranks ({first}): one of them may be gone, or an address or "
            "network interface wrong (MASTER_ADDR; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME)"
        )
    return (
        f"rank {_rank()} ends because it lost another rank ({first}); that one's own message, if it left any, says why"
    )


def end_with_launcher(grace: float = 5.0) -> None:
    """Watches, from a thread, the process that started this one, if it started it as a rank or said who it is.

    A rank that waits in a collective need not notice that the process which launched it was killed or has failed, and
    over NCCL may wait for as long as the group's timeout. A run whose launcher gave its number in :data:`LAUNCHER` is
    sent SIGTERM, as by hand. Does nothing in another process, one without that variable and without ``LOCAL_RANK``.

    Args:
        grace: seconds that a rank has to come to its own end once its launcher is gone.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # ranks that this process starts have another
    if launcher is not None and hasattr(os, "getppid"):
        threading.Thread(target=_follow, args=(int(launcher),), name="launcher-watch", daemon=True).start()
    elif "LOCAL_RANK" in os.environ and hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(os.getppid(), grace), name="launcher-watch", daemon=True).start()


def end_by_signal(signum: int, sentence: str, patience: float = 10.0) -> NoReturn:
    """Ends this process as a signal would; the first rank says why.

    A rank that Lightning started waits until the process that did is gone: Lightning kills that, whatever it is at,
    when another rank ends first.

    Args:
        signum: which signal.
        sentence: on stderr.
        patience: seconds for which it waits at most.

    Raises:
        SystemExit: with 128 + ``signum``, as a shell has it of a process that a signal ended.
    """
    if is_first_rank():
        print(sentence, file=sys.stderr, flush=True)
    elif not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys() and hasattr(os, "getppid"):
        launcher, until = os.getppid(), time.monotonic() + patience
        while os.getppid() == launcher and time.monotonic() < until:
            time.sleep(0.05)
    raise SystemExit(128 + signum)


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(_POLL)
    time.sleep(grace)
    try:
        print(f"error: rank {_rank()} ends because the process that launched it is gone", file=sys.stderr, flush=True)
    finally:  # also if nobody reads stderr any more
        os._exit(1)  # the main thread may wait in a collective for ever


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def _rank() -> str:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))
