"""Load of the machine by others while a run trains: what seconds per epoch are worth."""

import os
import time
from pathlib import Path

#: From this share of the machine on that other processes use, seconds per epoch are not to be relied on.
BUSY = 0.1


class MachineLoad:
    """Measures how many cores processes of others use, from :meth:`start` on; on Linux, from ``/proc``.

    The run's own are this process, its descendants and, under torchrun or srun, those of the process that started it.
    """

    def __init__(self) -> None:
        self._started: tuple[float, float, float] | None = None

    def start(self) -> None:
        """Starts measuring anew."""
        self._started = self._now()

    def others(self) -> float | None:
        """The mean number of cores that others have used; None where the system does not tell, or before a second."""
        now = self._now()
        if self._started is None or now is None or now[0] - self._started[0] < 1:
            return None
        wall, machine, own = (after - before for after, before in zip(now, self._started, strict=True))
        return max(0.0, (machine - own) / wall)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds by the clock, and CPU seconds of the machine and of the run."""
        try:
            ticks = os.sysconf("SC_CLK_TCK")
            user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
            own = _cpu_ticks(os.getppid() if {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ) else os.getpid())
        except (AttributeError, OSError, ValueError):
            return None
        return time.perf_counter(), sum((user, nice, system, *interrupts)) / ticks, own / ticks


def is_busy(others: float | None) -> bool:
    """Whether others used more than :data:`BUSY` of this machine's cores."""
    return others is not None and others > BUSY * (os.cpu_count() or 1)


def _cpu_ticks(root: int) -> int:
    """CPU time of a process and its descendants, those included that have ended and were waited for."""
    parents, ticks = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended in the meantime
                continue
            parents[int(entry.name)], ticks[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    own = {root}
    while more := {process for process, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(ticks.get(process, 0) for process in own)
