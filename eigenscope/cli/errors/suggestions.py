"""Suggestions for misspelt names ("did you mean …?")."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.6  # of two names, the share of letters in common from which one is offered for the other
_SHOWN = 16  # how many names are listed; beyond that a list helps nobody


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of some names, whatever the case of letters; of equally similar ones the first.

    Args:
        name: what was written.
        names: what it could have been.

    Returns:
        None if none is similar.
    """
    scored = [(SequenceMatcher(None, name.lower(), other.lower()).ratio(), other) for other in names]
    score, best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best if score >= _ALIKE else None


def nearest_key(key: str, known: Iterable[str]) -> tuple[str, str | None, list[str]]:
    """What is unknown of a dotted key, and what was probably meant.

    Args:
        key: what was written, such as ``trainer.max_epoch`` or ``modle.init_args``.
        known: the keys that there are, dotted.

    Returns:
        The key up to its first unknown part; the key that was probably meant, complete as far as the first, or None;
        and the names known at that place.
    """
    known = list(known)
    parts = key.split(".")
    split = [other.split(".") for other in known]
    for depth, part in enumerate(parts):
        here = sorted({other[depth] for other in split if other[:depth] == parts[:depth] and len(other) > depth})
        if part not in here:
            break
    unknown = ".".join(parts[: depth + 1])
    alike = nearest(part, here)
    if alike is not None:
        return unknown, ".".join([*parts[:depth], alike]), here
    same_end = [other for other in known if other.rpartition(".")[2] == parts[-1]]
    return (key, same_end[0], here) if len(same_end) == 1 else (unknown, None, here)


def listed(names: Iterable[str], last: str = "and") -> str:
    """``a, b and c``."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def hint(meant: str | None, names: Iterable[str], introduction: str) -> str:
    """The end of a sentence: what was probably meant, or else all that there is, if that is not too much to read.

    Args:
        meant: the nearest name, or None.
        names: all that there is.
        introduction: the words before them, such as ``known are``.
    """
    if meant is not None:
        return f"; did you mean {meant}?"
    names = list(names)
    return f"; {introduction} {listed(names)}" if 0 < len(names) <= _SHOWN else ""
