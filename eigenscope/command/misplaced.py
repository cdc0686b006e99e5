"""Arguments that were written beside the name of their class instead of below its ``init_args``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from eigenscope.command.nearest import nearest

_BESIDE = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Misplaced:
    """A class and what was written beside it.

    Attributes:
        name: of the class, as written.
        arguments: what stands beside it and should not, by name; at least one.
    """

    name: str
    arguments: dict[str, Any]

    def misspelt(self) -> tuple[str, str] | None:
        """The first of the arguments that is meant to be ``init_args`` itself, or another such key, and that key."""
        alike = {key: nearest(key, _BESIDE) for key, value in self.arguments.items() if _mapping(value) is not None}
        return next(((key, meant) for key, meant in alike.items() if meant is not None), None)


def misplaced(value: Any) -> Misplaced | None:
    """The first class with arguments beside it in a value, or in a list of values.

    Args:
        value: as a parser was given it.

    Returns:
        None if there is none.
    """
    if isinstance(value, list):
        return next(filter(None, map(misplaced, value)), None)
    given = _mapping(value) or {}
    name = given.get("class_path")
    arguments = {key: item for key, item in given.items() if key not in _BESIDE and not key.startswith("__")}
    return Misplaced(name, arguments) if isinstance(name, str) and arguments else None


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Only the first level of a namespace, whose own ``items`` are those of all levels."""
    if isinstance(value, Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else None
