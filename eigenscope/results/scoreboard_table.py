"""Scoreboard as text: a table for each set of runs that compare, whose rows can be told apart."""

from collections.abc import Sequence
from pathlib import Path

from eigenscope.results.run_result import run_title
from eigenscope.results.scoreboard import Row, label_of, score_of, settings_of
from eigenscope.results.settings import SEED, what_differs
from eigenscope.text import text_table

_TOGETHER = ("score", "mode", "percent", "protocol", "data", "validated")  # runs that share these compare
_WIDTHS = (56, 88, 120)  # of a run's name, as few letters as tell all rows apart
_MARK = "→ "


def scoreboard_table(rows: Sequence[Row], *marked: Row) -> str:
    """The scoreboard as text.

    Runs whose scores do not compare stand apart: of another metric, on other data, by another protocol, or validated on
    another part of the validation set. Each part is headed by what its runs share, the best row first; the parts of
    marked rows come first.

    Args:
        rows: as read.
        *marked: those of them that get an arrow.
    """
    own = {id(row) for row in marked}
    names, common = _names(rows)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in _TOGETHER), []).append(row)
    ordered = sorted(groups.values(), key=lambda members: own.isdisjoint(map(id, members)))
    parts = [f"In every row: {', '.join(common)}"] if common else []
    for members in ordered:
        heading = _heading(members[0], any(row["data"] for row in rows))
        parts.append("\n".join(filter(None, [heading, _table(members, names, own)])))
    if any(row["busy"] for row in rows):
        parts.append("* other processes kept the machine busy: these seconds are not to be relied on")
    return "\n\n".join(parts)


def _heading(row: Row, data_known: bool) -> str:
    """What the rows beside this one share; ``data_known``: other rows of the board say what their data are."""
    data = row["data"] or ("data not recorded" if data_known else "")
    shared = [data, row["protocol"] and f"protocol {row['protocol']}"]
    shared += [row["validated"] and f"validated on {row['validated']}"]
    return "; ".join(filter(None, shared))


def _table(rows: list[Row], names: dict[int, str], own: set[int]) -> str:
    score = score_of(rows[0])
    rows = sorted(rows, key=lambda row: float(row["best"]), reverse=score.mode == "max")
    header = ["experiment", "seed", f"{score.name}{score.unit}", "at epoch", "test", "folder", "optimizer"]
    header += ["parameters", "s/epoch"]
    mark = {True: _MARK, False: " " * len(_MARK)} if own else {True: "", False: ""}
    cells = [
        [
            mark[id(row) in own] + names[id(row)],
            row["seed"] or "-",
            score.text(float(row["best"])),
            row["epoch"],
            score.text(float(row["test"])) if row["test"] else "-",
            Path(row["log_dir"]).name or "-",
            row["optimizer"] or "-",
            f"{int(row['parameters']):,}" if row["parameters"] else "-",
            _seconds(row),
        ]
        for row in rows
    ]
    return text_table([mark[False] + header[0], *header[1:]], cells)


def _seconds(row: Row) -> str:
    seconds = f"{float(row['seconds_per_epoch']):.1f}" if row["seconds_per_epoch"] else "-"
    return f"{seconds}*" if row["busy"] else seconds


def _names(rows: Sequence[Row]) -> tuple[dict[int, str], list[str]]:
    """What each row is called, and what was left out of the names because all runs have it."""
    labels = _labels(rows)
    common: list[str] = []
    if len(rows) > 1 and any(len(run_title(row["name"], labels[id(row)])) > _WIDTHS[0] for row in rows):
        settings = [part for part in labels[id(rows[0])] if part[:1] not in "+−"]
        common = [part for part in settings if all(part in label for label in labels.values())]
    whole = {id(row): (row["name"], tuple(part for part in labels[id(row)] if part not in common)) for row in rows}
    for width in (*_WIDTHS, None):
        names = {
            key: run_title(name, label) if width is None else _short(name, label, width)
            for key, (name, label) in whole.items()
        }
        if len(set(names.values())) == len(set(whole.values())):
            break
    return names, common


def _short(name: str, label: Sequence[str], width: int) -> str:
    """A name with as many parts as fit, and how many are left out."""
    for count in range(len(label), -1, -1):
        left = len(label) - count
        title = run_title(name, label[:count]) + (f" … {left} more" if left else "")
        if len(title) <= width:
            break
    return title


def _labels(rows: Sequence[Row]) -> dict[int, list[str]]:
    """The labels, and what else differs between rows that have the same name and the same label."""
    labels = {id(row): label_of(row) for row in rows}
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["name"], row["label"]), []).append(row)
    for members in alike.values():
        known = [row for row in members if row["settings"]]
        settings = [{k: v for k, v in settings_of(row).items() if k != SEED} for row in known]
        for row, parts in zip(known, what_differs(settings) if known else [], strict=True):
            labels[id(row)] = [*labels[id(row)], *(part for part in parts if part not in labels[id(row)])]
    return labels
