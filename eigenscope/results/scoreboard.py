"""Scoreboard file: one CSV row per finished run, over all experiments."""

import csv
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from eigenscope.files import replace_atomically
from eigenscope.results.run_result import MonitoredMetric, RunResult

COLUMNS = (
    "name",
    "score",
    "mode",
    "percent",
    "best",
    "epoch",
    "last",
    "test",
    "protocol",
    "optimizer",
    "parameters",
    "seconds_per_epoch",
    "seed",
    "finished",
    "log_dir",
    "label",
    "data",
    "validated",
    "busy",
    "settings",
)
_NUMBERS = {"best": float, "test": float, "parameters": int, "seconds_per_epoch": float}
_EMPTY = dict.fromkeys(COLUMNS, "") | {"score": "val/acc", "mode": "max", "percent": "1"}  # once there was no other
_LABEL = "; "

Row = dict[str, str]


def add_to_scoreboard(path: Path, result: RunResult, settings: Mapping[str, Any] | None = None) -> Row:
    """Adds a run's row, or replaces the row of the same log folder, by whatever path that was named.

    Runs that finish together wait for each other, and the file is replaced as a whole.

    Args:
        path: of the file.
        result: of the run.
        settings: those that the result depends on, plain values by dotted names, for telling runs apart.

    Returns:
        The row.

    Raises:
        ValueError: the file is not a scoreboard.
    """
    best, epoch = result.best
    row = {
        "name": result.name,
        "score": result.score.name,
        "mode": result.score.mode,
        "percent": str(int(result.score.percent)),
        "best": f"{best:.6g}",
        "epoch": str(epoch),
        "last": f"{result.last:.6g}",
        "test": "" if result.test_score is None else f"{result.test_score:.6g}",
        "protocol": result.protocol,
        "optimizer": result.optimizer,
        "parameters": str(result.parameters),
        "seconds_per_epoch": f"{result.seconds_per_epoch:.2f}",
        "seed": "" if result.seed is None else str(result.seed),
        "finished": result.finished,
        "log_dir": result.log_dir,
        "label": _LABEL.join(result.label),
        "data": result.data,
        "validated": result.validated,
        "busy": "1" if result.busy else "",
        "settings": json.dumps(settings) if settings else "",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        others = [old for old in read_scoreboard(path) if not _is_same(old["log_dir"], result.log_dir)]
        with replace_atomically(path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*others, row])
    return row


def read_scoreboard(path: Path) -> list[Row]:
    """The rows in the order they were added; none if there is no file.

    A column that is not there reads as empty, one of the three that say what the score is as ``val/acc`` in per cent.

    Raises:
        ValueError: the file is not a scoreboard: it has no column ``name`` or no column ``best``, or holds something
            other than a number where there must be one.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if not {"name", "best"} <= set(reader.fieldnames or ()):
                raise ValueError(f"its columns must be {', '.join(COLUMNS)}")
            rows = [_EMPTY | {key: value for key, value in row.items() if value} for row in reader]
        for number, row in enumerate(rows, start=1):
            _check(row, f"row {number}")
    except (ValueError, csv.Error, IsADirectoryError) as error:
        raise ValueError(f"{path} is not a scoreboard: {error}") from error
    return rows


def rows_of(rows: Collection[Row], folders: Collection[str]) -> list[Row]:
    """The rows of some log folders, by whatever paths those are named."""
    wanted = {Path(folder).resolve() for folder in folders}
    return [row for row in rows if row["log_dir"] and Path(row["log_dir"]).resolve() in wanted]


def score_of(row: Row) -> MonitoredMetric:
    """What a row's run was judged by."""
    return MonitoredMetric(row["score"], "min" if row["mode"] == "min" else "max", row["percent"] == "1")


def label_of(row: Row) -> list[str]:
    """What a row's run has otherwise than its configuration file, in parts."""
    return row["label"].split(_LABEL) if row["label"] else []


def settings_of(row: Row) -> dict[str, Any]:
    """The settings that a row's result depends on; empty if it does not say."""
    found: dict[str, Any] = json.loads(row["settings"]) if row["settings"] else {}
    return found


def _is_same(folder: str, other: str) -> bool:
    """Whether both name one folder; a run without logs has none."""
    return bool(folder and other) and Path(folder).resolve() == Path(other).resolve()


def _check(row: Row, where: str) -> None:
    """What the table is going to read."""
    if not row["score"].startswith("val/"):
        raise ValueError(f"{where} has the score {row['score']!r}, which must begin with 'val/'")
    for column, kind in _NUMBERS.items():
        try:
            kind(row[column] or ("" if column == "best" else 0))
        except ValueError:
            raise ValueError(f"{where} has {row[column]!r} for {column}, which must be a number") from None
    try:
        settings_of(row)
    except ValueError:
        raise ValueError(f"{where} has {row['settings'][:20]!r} for settings, which must be JSON") from None
