"""Hyperparameters of a run as a flat row, for TensorBoard's HPARAMS."""

from collections.abc import Mapping
from typing import Any


def flat_hyperparameters(arguments: Mapping[str, Any]) -> dict[str, str | float]:
    """The arguments that a module was built from, one value a column.

    A class becomes its name. Of the network's arguments each has a column of its own name (``net.<name>`` if the module
    has an argument of that name); of the optimizer's those that are words, such as a precision, while its rates are
    better read from the optimizer. Lists and groups become one short text, None becomes ``none``. Names that begin with
    an underscore are left out.

    Args:
        arguments: name to value; a class as a mapping with ``class_path`` and ``init_args``.
    """
    row: dict[str, str | float] = {}
    given = {name: value for name, value in arguments.items() if not name.startswith("_")}
    for name, value in given.items():
        row[name] = _cell(value)
        if name == "net":
            row |= {f"net.{x}" if x in given else x: _cell(y) for x, y in _init_args(value).items()}
        if name == "optimizer":
            row |= {x: y for x, y in _words(value).items() if x not in given}
    return row


def _init_args(value: Any) -> Mapping[str, Any]:
    found = value.get("init_args") if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _words(value: Any) -> dict[str, str]:
    """The arguments that are words, of a class and of those that it is given; the outermost wins."""
    found: dict[str, str] = {}
    for name, argument in _init_args(value).items():
        if isinstance(argument, str):
            found[name] = argument
    for argument in _init_args(value).values():
        found = _words(argument) | found
    return found


def _cell(value: Any) -> str | float:
    if isinstance(value, bool | None):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, Mapping):
        if "class_path" in value:
            return str(value["class_path"]).rpartition(".")[2]
        return " ".join(f"{name}={_cell(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(_cell(part)) for part in value)
    return type(value).__name__
