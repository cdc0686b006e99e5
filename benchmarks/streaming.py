"""Benchmark of streaming: a million noise images through a loader, at constant memory.

    python benchmarks/streaming.py                       # 32×32 pixels, one worker process
    python benchmarks/streaming.py --image_size 64 --samples 200000 --workers 0

Nothing is trained: each batch is drawn, sent and dropped. Memory is the resident set of the process that loads and of
its workers, from /proc, hence on Linux alone; the loader and its first tenth are over before it is first read.
"""

import argparse
import os
import time
from multiprocessing import active_children
from pathlib import Path

from timing import machine

from eigenscope.datamodules import HeavyTailedNoiseDataModule
from eigenscope.text import text_table

MIB = 2**20


def resident(pid: int) -> float:
    """MiB of memory that a process holds at this moment."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    data = HeavyTailedNoiseDataModule(
        image_size=options.image_size,
        samples_per_epoch=options.samples,
        batch_size=options.batch_size,
        num_workers=options.workers,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    side = options.image_size
    print(f"{machine()}; {options.samples:,} images of 3×{side}×{side}, {options.workers} workers")
    readings: dict[float, tuple[float, float, float]] = {}
    started, seen = time.perf_counter(), 0
    for number, (images, _) in enumerate(loader, start=1):
        seen += len(images)
        for share in (0.1, 0.5, 1.0):
            if share not in readings and number >= share * len(loader):
                workers = sum(resident(child.pid) for child in active_children() if child.pid is not None)
                readings[share] = (seen / (time.perf_counter() - started), resident(os.getpid()), workers)
    first = readings[0.1]
    rows = [
        [f"{share:.0%}", f"{rate:,.0f}", f"{mine:.1f}", f"{theirs:.1f}", f"{mine + theirs - sum(first[1:]):+.1f}"]
        for share, (rate, mine, theirs) in readings.items()
    ]
    print(text_table(["streamed", "images/s", "loading MiB", "workers MiB", "growth MiB"], rows))


if __name__ == "__main__":
    main()
