"""Groups of named parameters."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor


def named_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    """The groups that an optimizer is given, new dictionaries with lists of pairs; one where it is given pairs.

    Raises:
        ValueError: a parameter has no name.
    """
    entries = list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    for entry in chain.from_iterable(group["params"] for group in groups):
        if not (isinstance(entry, tuple) and isinstance(entry[0], str)):
            raise ValueError(
                f"params must be pairs (name, parameter), as module.named_parameters() gives them, got {type(entry)}"
            )
    return groups


def by_name(groups: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """All parameters of groups.

    Raises:
        ValueError: two have one name.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in chain.from_iterable(group["params"] for group in groups):
        if name in named:
            raise ValueError(f"params must have names of their own, got {name} twice")
        named[name] = parameter
    return named


def select(groups: Sequence[dict[str, Any]], wanted: Callable[[str], bool]) -> list[Any]:
    """The groups with the wanted parameters; the pairs themselves if there is one group without options.

    Args:
        groups: as :func:`named_groups` gives them.
        wanted: by name.
    """
    chosen = [{**group, "params": [pair for pair in group["params"] if wanted(pair[0])]} for group in groups]
    chosen = [group for group in chosen if group["params"]]
    bare = len(groups) == 1 and set(groups[0]) == {"params"}
    return list(chosen[0]["params"]) if bare and chosen else chosen


def few(names: Sequence[str]) -> str:
    """The first three names, and how many there are beyond."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more
