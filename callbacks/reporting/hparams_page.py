"""TensorBoard's HPARAMS page: a row for each run of a log folder, and first the columns in which they differ."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from eigenscope.adapters.tensorboard_names import HPARAMS_FILE, Cell, HParamsRow, read_hparams, write_hparams

LABEL = "Differs by"
_LOCK = ".hparams.lock"
_SEED = "seed"
_MISSING = object()


def add_to_page(folder: Path, root: Path, row: HParamsRow, first: Collection[str]) -> None:
    """Writes a run's row, and renews which columns differ in the rows of the other runs of the log folder.

    TensorBoard takes the columns from any run that it finds. So each run's file names those in which the runs of its
    experiment differ (those beside it), or, where they differ in their seed alone, all runs of the log folder.

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
        types = _types([other.columns for other in rows.values()])
        everywhere = _differing([other.columns for other in rows.values()])
        for place, other in rows.items():
            beside = [each.columns for at, each in rows.items() if at.parent.resolve() == place.parent.resolve()]
            differing = _differing(beside)
            if differing <= {_SEED}:
                differing = everywhere or set(first)
            names = sorted({name for each in beside for name in each} | (differing & types.keys()))
            columns = {name: (types[name], name in differing) for name in names}
            cells = {name: _cell(value, types[name]) for name, value in other.columns.items()}
            with suppress(PermissionError):  # somebody else's run
                write_hparams(place / HPARAMS_FILE, HParamsRow(cells, other.metrics), columns)


def _differing(rows: Iterable[Mapping[str, Cell]]) -> set[str]:
    rows = list(rows)
    names = {name for row in rows for name in row}
    return {name for name in names if len({row.get(name, _MISSING) for row in rows}) > 1}


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
