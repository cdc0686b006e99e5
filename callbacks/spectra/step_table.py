"""CSV file with a row per logged step, truncated to the checkpoint's step on resume."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eigenscope.files import replace_atomically

_RENAMED = {"frame": "reference"}  # columns of files that version 0.4 wrote


class StepTable:
    """CSV rows, each starting with its step; a resumed run appends after the step of its checkpoint.

    Rows of later steps, which a run wrote after its last checkpoint, are dropped, as is a row cut off in the middle
    and a file with other columns. Every call of :meth:`append` leaves whole rows on the disk.

    Args:
        path: of the file; its folder is made.
        columns: the first of which is the step.
        step: the one that the run starts from.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path = path
        kept = [row for row in _read(path, columns) if int(row[0]) <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as aside, aside.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *kept])

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Writes rows; numbers in six digits."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(
                [format(cell, ".6g") if isinstance(cell, float) else cell for cell in row] for row in rows
            )


def _read(path: Path, columns: Sequence[str]) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if [_RENAMED.get(name, name) for name in header] != list(columns):
        return []
    return [row for row in rows if len(row) == len(columns) and row[0].isdecimal()]
