"""Benchmark of startup: ``eigenscope fit --help`` beside importing lightning, torch and torchvision.

    python benchmarks/startup.py                # 7 rounds of both
    python benchmarks/startup.py --rounds 15    # steadier

Each is a process of its own, after one that is not counted; rounds alternate. Seconds on the clock are what a person
waits; seconds of processor time, of which the least of all rounds is given, do not mind other work on the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from timing import machine

from eigenscope.text import text_table

ROOT = Path(__file__).parent.parent
ROWS = {
    "import lightning, torch, torchvision": ["-c", "import lightning.pytorch, torch, torchvision"],
    "import eigenscope.cli.lightning_cli": ["-c", "import eigenscope.cli.lightning_cli"],
    "eigenscope fit --help": ["-m", "eigenscope", "fit", "--help"],
}


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of processor time that Python takes with these arguments."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for arguments in ROWS.values():
        measured(arguments)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for _ in range(options.rounds):
        for name, arguments in ROWS.items():
            times[name].append(measured(arguments))
    print(f"{machine()}; {options.rounds} rounds")
    walls = {name: statistics.median(wall for wall, _ in rounds) for name, rounds in times.items()}
    cpus = {name: min(cpu for _, cpu in rounds) for name, rounds in times.items()}
    base = next(iter(ROWS))
    cells = [
        [name, *(f"{seconds[name]:.2f} s ({seconds[name] / seconds[base]:.3f}×)" for seconds in (walls, cpus))]
        for name in ROWS
    ]
    print(text_table(["process", "clock, median", "processor, least"], cells))


if __name__ == "__main__":
    main()
