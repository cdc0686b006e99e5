"""Runs the matrix and writes docs/matrix.md: ``python -m tests.matrix --help``."""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.matrix.cells import Cell
from tests.matrix.covering import EXPERIMENTS, covering, whole
from tests.matrix.running import Result, forking_loaders, run_all
from tests.matrix.table import PAGE, written


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description="Runs every cell, writes docs/matrix.md"
    )
    parser.add_argument("--covering", action="store_true", help="only the covering set that the tests run: minutes")
    parser.add_argument("--jobs", type=int, default=2, help="processes; a cell of two ranks has two more")
    parser.add_argument("--results", default="runs/matrix.jsonl", help="what is known; cells in it are not run again")
    given = parser.parse_args()
    wanted = [cell for e in EXPERIMENTS for cell in covering(e)] if given.covering else list(whole())
    results = Path(given.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    known = {Cell(**cell): Result(Cell(**cell), mark, sentence) for cell, mark, sentence in lines}
    missing = [cell for cell in wanted if cell not in known]
    missing.sort(key=lambda c: (c.experiment, c.accumulate, c.averaging))  # cells of one reference side by side
    size = 1 + len(missing) // (8 * given.jobs)
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]
    begun = time.monotonic()
    started = {"mp_context": multiprocessing.get_context("spawn"), "initializer": forking_loaders}
    with ProcessPoolExecutor(given.jobs, **started) as executor:
        for done in as_completed([executor.submit(run_all, part, str(results)) for part in parts]):
            known |= {result.cell: result for result in done.result()}
            print(f"{sum(c in known for c in wanted)} of {len(wanted)}, {time.monotonic() - begun:.0f} s", flush=True)
    found = [known[cell] for cell in wanted]
    PAGE.write_text(written(found, "python -m tests.matrix" + (" --covering" if given.covering else "")))
    faults = [result for result in found if result.mark == "fault"]
    for result in faults:
        print(f"{result.cell}: {result.sentence}")
    print(f"{len(found)} cells, {len(faults)} faults: {PAGE}")


if __name__ == "__main__":
    main()
