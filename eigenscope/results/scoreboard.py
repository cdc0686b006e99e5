"""Scoreboard file: one CSV row per finished run, over all experiments."""

import csv
from pathlib import Path

from filelock import FileLock

from eigenscope.files import replace_atomically
from eigenscope.results.run_result import MonitoredMetric, RunResult
from eigenscope.text import text_table

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
)
_NUMBERS = {"best": float, "test": float, "parameters": int, "seconds_per_epoch": float}
_EMPTY = dict.fromkeys(COLUMNS, "") | {"score": "val/acc", "mode": "max", "percent": "1"}  # once there was no other


def add_to_scoreboard(path: Path, result: RunResult) -> None:
    """Adds a run's row, or replaces the row of the same log folder, by whatever path that was named.

    Runs that finish together wait for each other, and the file is replaced as a whole.

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
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        others = [old for old in read_scoreboard(path) if not _is_same(old["log_dir"], result.log_dir)]
        with replace_atomically(path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*others, row])


def read_scoreboard(path: Path) -> list[dict[str, str]]:
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


def scoreboard_table(rows: list[dict[str, str]]) -> str:
    """The scoreboard as text, a part for each monitored metric, the best first."""
    parts = []
    for name, mode, percent in dict.fromkeys((row["score"], row["mode"], row["percent"]) for row in rows):
        score = MonitoredMetric(name, "min" if mode == "min" else "max", percent == "1")
        members = [row for row in rows if (row["score"], row["mode"], row["percent"]) == (name, mode, percent)]
        members.sort(key=lambda row: float(row["best"]), reverse=score.mode == "max")
        header = ["experiment", "seed", f"{name}{score.unit}", "at epoch", "test", "protocol", "optimizer"]
        header += ["parameters", "s/epoch"]
        parts.append(text_table(header, [_cells(row, score) for row in members]))
    return "\n\n".join(parts)


def _is_same(folder: str, other: str) -> bool:
    """Whether both name one folder; a run without logs has none."""
    return bool(folder and other) and Path(folder).resolve() == Path(other).resolve()


def _cells(row: dict[str, str], score: MonitoredMetric) -> list[str]:
    return [
        row["name"],
        row["seed"] or "-",
        score.text(float(row["best"])),
        row["epoch"],
        score.text(float(row["test"])) if row["test"] else "-",
        row["protocol"] or "-",
        row["optimizer"] or "-",
        f"{int(row['parameters']):,}" if row["parameters"] else "-",
        f"{float(row['seconds_per_epoch']):.1f}" if row["seconds_per_epoch"] else "-",
    ]


def _check(row: dict[str, str], where: str) -> None:
    """What the table is going to read."""
    for column, kind in _NUMBERS.items():
        try:
            kind(row[column] or ("" if column == "best" else 0))
        except ValueError:
            raise ValueError(f"{where} has {row[column]!r} for {column}, which must be a number") from None
