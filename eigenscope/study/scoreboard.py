"""The scoreboard: one CSV row per finished run, over all experiments."""

import csv
from pathlib import Path

from filelock import FileLock

from eigenscope.files import replace_atomically
from eigenscope.study.result import RunResult
from eigenscope.study.table import text_table

COLUMNS = ("name", "val_acc", "epoch", "last_val_acc", "parameters", "seconds_per_epoch", "seed", "finished", "log_dir")


def add_to_scoreboard(path: Path, result: RunResult) -> None:
    """Adds a run's row; runs that finish together wait for each other, and the file is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    accuracy, epoch = result.best
    row = {
        "name": result.name,
        "val_acc": f"{accuracy:.6f}",
        "epoch": str(epoch),
        "last_val_acc": f"{result.last:.6f}",
        "parameters": str(result.parameters),
        "seconds_per_epoch": f"{result.seconds_per_epoch:.2f}",
        "seed": "" if result.seed is None else str(result.seed),
        "finished": result.finished,
        "log_dir": result.log_dir,
    }
    with FileLock(path.with_name(f"{path.name}.lock")):
        rows = [*read_scoreboard(path), row]
        with replace_atomically(path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def read_scoreboard(path: Path) -> list[dict[str, str]]:
    """The rows in the order they were added; none if there is no file.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is not a scoreboard: its columns must be {', '.join(COLUMNS)}")
        return list(reader)


def scoreboard_table(rows: list[dict[str, str]]) -> str:
    """The board as text, best validation accuracy first."""
    ordered = sorted(rows, key=lambda row: float(row["val_acc"]), reverse=True)
    header = ["experiment", "seed", "val %", "at epoch", "parameters", "s/epoch"]
    cells = [
        [
            row["name"],
            row["seed"] or "-",
            f"{100 * float(row['val_acc']):.2f}",
            row["epoch"],
            f"{int(row['parameters']):,}",
            f"{float(row['seconds_per_epoch']):.1f}",
        ]
        for row in ordered
    ]
    return text_table(header, cells)
