"""Runs cells in this process and on two ranks, each reference once."""

import json
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.ddp_pool import Pool
from tests.matrix.cells import Cell, Outcome, new_folder, run, run_on_rank
from tests.matrix.copies import Copies
from tests.matrix.verdict import fault, mark


class Result(NamedTuple):
    """What the table says of a cell, and its sentence: that of the refusal, or what is wrong."""

    cell: Cell
    mark: str
    sentence: str


class Runner:
    """Runs cells in a prepared folder.

    Args:
        folder: see :func:`tests.matrix.cells.prepare`.
        on_two_ranks: calls a function on two ranks with arguments and gives what each returned and printed.
    """

    def __init__(self, folder: Path, on_two_ranks: Callable[..., list[Any]]) -> None:
        self.folder = str(folder)
        self.on_two_ranks = on_two_ranks
        self.references: dict[Cell, Outcome] = {}

    def result(self, cell: Cell) -> Result:
        """Runs a cell, and its reference where that has not been run."""
        watching = [Copies()] if cell == cell.reference else []
        outcome = run(cell, self.folder, *watching) if cell.ranks == 1 else self._of_two(cell)
        if cell == cell.reference:
            self.references[cell] = outcome
        if outcome.sentence or outcome.fault:
            reference = outcome
        else:
            reference = self.references.get(cell.reference) or run(cell.reference, self.folder, Copies())
            self.references[cell.reference] = reference
        return Result(cell, mark(cell, outcome, reference), fault(cell, outcome, reference) or outcome.sentence)

    def _of_two(self, cell: Cell) -> Outcome:
        try:
            first, second = self.on_two_ranks(run_on_rank, asdict(cell), self.folder)
        except AssertionError as error:  # a rank that is lost or does not answer
            return Outcome(fault=" ".join(str(error).split())[-300:])
        one, two = Outcome(**first.value), Outcome(**second.value)
        if (one.weights, one.sentence) != (two.weights, two.sentence):
            return Outcome(fault=one.fault or two.fault or f"the ranks end apart: {one.sentence or two.sentence}")
        if "epoch " in second.printed:
            return Outcome(fault="the second rank prints a table")
        return one


def forking_loaders() -> None:
    """Lets loaders of a process that was spawned start theirs as they would in any other."""
    multiprocessing.set_start_method("fork", force=True)


def run_all(cells: Sequence[Cell], kept: str) -> list[Result]:
    """Runs cells one after the other, and notes each in a file of lines."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pool = Pool(ranks=2, timeout=180)
    results = []
    try:
        with new_folder() as folder:
            runner = Runner(Path(folder), pool.run)
            for cell in cells:
                results.append(runner.result(cell))
                with Path(kept).open("a") as file:
                    file.write(json.dumps([asdict(cell), *results[-1][1:]]) + "\n")
    finally:
        pool.close()
    return results
