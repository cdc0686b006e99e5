"""TensorBoard's HPARAMS page: a row for each run of a log folder, and first the columns in which they differ."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from eigenscope.adapters.tensorboard_names import HPARAMS_FILE, Cell, HParamsRow, read_hparams, write_hparams

#: The column of a run's label, and between its parts.
LABEL, SEPARATOR = "label", "; "
_DIFFERS_BY = "Differs by"  # a capital is before all other columns
_LOCK = ".hparams.lock"
_SEED = "seed"
_MISSING = object()


def add_to_page(folder: Path, root: Path, row: HParamsRow, first: Collection[str]) -> None:
    """Writes a run's row, and renews which columns differ in the rows of the other runs of the log folder.

    TensorBoard takes the columns from any run that it finds. So each run's file names those in which the runs of its
    experiment differ (those beside it), or, where they differ in their seed alone, all runs of the log folder. A column
    that some runs do not have counts if a label names it. The first column says in words what of its label a run does
    not share with all those beside it.

    Args:
        folder: of the run.
        root: of all runs: the logger's ``save_dir``.
        row: of the run.
        first: columns that are shown first where no run differs from another.
    """
    with FileLock(root / _LOCK):
        rows = {folder: row}
        for pattern in ("*", "*/*", "*/*/*"):
            for file in root.glob(f"{pattern}/{HPARAMS_FILE}"):
                if file.parent.resolve() != folder.resolve() and (other := read_hparams(file)) is not None:
                    rows[file.parent] = other
        everywhere = _differing([other.columns for other in rows.values()])
        for place, other in rows.items():
            beside = [each.columns for at, each in rows.items() if at.parent.resolve() == place.parent.resolve()]
            differing = _differing(beside)
            if differing <= {_SEED}:
                differing = everywhere or set(first)
            types = _types(each.columns for each in rows.values()) | {_DIFFERS_BY: str}
            names = sorted({name for each in beside for name in each} | (differing & types.keys()) | {_DIFFERS_BY})
            shown = {*differing, _DIFFERS_BY} if len(rows) > 1 else differing
            columns = {name: (types[name], name in shown) for name in names}
            cells = {name: _cell(value, types[name]) for name, value in other.columns.items()}
            cells[_DIFFERS_BY] = _own_parts(other.columns, beside)
            with suppress(PermissionError):  # somebody else's run
                write_hparams(place / HPARAMS_FILE, HParamsRow(cells, other.metrics), columns)


def _parts(row: Mapping[str, Cell]) -> list[str]:
    label = str(row.get(LABEL, ""))
    return label.split(SEPARATOR) if label else []


def _own_parts(row: Mapping[str, Cell], beside: Sequence[Mapping[str, Cell]]) -> str:
    common = set.intersection(*(set(_parts(other)) for other in beside)) if len(beside) > 1 else set()
    return ", ".join(part for part in _parts(row) if part not in common) or "–"


def _differing(rows: Iterable[Mapping[str, Cell]]) -> set[str]:
    rows = list(rows)
    names = {name for row in rows for name in row} - {LABEL, _DIFFERS_BY}
    differing = {name for name in names if len({row.get(name, _MISSING) for row in rows}) > 1}
    named = {part.partition("=")[0] for row in rows for part in _parts(row)}
    whole = {name for name in differing if name in named or all(name in row for row in rows)}
    return whole or differing


def _types(rows: Iterable[Mapping[str, Cell]]) -> dict[str, type]:
    """Of each column: number, truth value, or text where runs have values of different kinds."""
    found: dict[str, type] = {}
    for row in rows:
        for name, value in row.items():
            kind = bool if isinstance(value, bool) else str if isinstance(value, str) else float
            found[name] = kind if found.get(name, kind) is kind else str
    return found


def _cell(value: Cell, kind: type) -> Cell:
    if kind is str and not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else f"{value:g}"
    return value
