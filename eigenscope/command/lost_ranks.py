"""What a rank does when another is gone."""

import os
import sys
import threading
import time

_POLL = 0.5  # seconds
_LOST = ("gloo/transport", "ncclRemoteError", "remote process exited")  # in the messages of gloo and NCCL


def explain_lost_rank(error: BaseException) -> str | None:
    """A sentence for the error of a collective whose other ranks are gone, which is no fault of this rank.

    Args:
        error: whatever ended the run.

    Returns:
        The sentence; None if the error is another.
    """
    if isinstance(error, RuntimeError) and any(part in str(error) for part in _LOST):
        return f"rank {_rank()} ends because it lost another rank; that one's own message, if it left any, says why"
    return None


def end_with_launcher(grace: float = 5.0) -> None:
    """Watches, from a thread, the process that started this one, if it started it as a rank.

    A rank that waits in a collective need not notice that the process which launched it was killed or has failed, and
    over NCCL may wait for as long as the group's timeout. Does nothing in a process that nobody launched as a rank,
    which is one without ``LOCAL_RANK`` in its environment.

    Args:
        grace: seconds that a rank has to come to its own end once its launcher is gone.
    """
    if "LOCAL_RANK" in os.environ and hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(os.getppid(), grace), name="launcher-watch", daemon=True).start()


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(_POLL)
    time.sleep(grace)
    print(f"error: rank {_rank()} ends because the process that launched it is gone", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread may wait in a collective for ever


def _rank() -> str:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))
