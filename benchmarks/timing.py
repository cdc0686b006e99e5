"""Timing utilities of the benchmarks: medians over rounds that alternate between the rows of a table."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from eigenscope.text import text_table


def machine() -> str:
    """What ran it, for the head of a report."""
    return f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def medians(rows: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of every row, after one call of each that is not counted.

    Rounds alternate between the rows, so that a machine that slows down slows all of them.
    """
    for run in rows.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            times[name].append(seconds(run, device))
    return {name: statistics.median(values) for name, values in times.items()}


def ratio_table(times: Mapping[str, float], heading: str, over: str) -> str:
    """Rows of milliseconds, each also as a ratio to the row ``over``."""
    rows = [[name, f"{1e3 * time:.1f}", f"{time / times[over]:.3f}×"] for name, time in times.items()]
    return text_table([heading, "ms", "ratio"], rows)
