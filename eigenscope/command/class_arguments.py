"""What the classes that a configuration names take as arguments."""

import inspect
import typing
from collections.abc import Mapping
from importlib import import_module
from typing import Any


class _Absent:
    def __repr__(self) -> str:
        return "absent"


#: In place of a value where there is none.
ABSENT = _Absent()


def class_at(class_path: str) -> Any:
    """What the class path of a resolved configuration leads to; None if it leads nowhere."""
    package, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(package), name)
    except (ImportError, AttributeError, ValueError):
        return None


def argument_default(owner: Any, name: str) -> Any:
    """What an argument of a class or function is if it is not given; ``ABSENT`` if it has no default, or is none."""
    for kind in _takers(owner):
        parameter = _parameters(kind).get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return ABSENT


def argument_annotation(owner: Any, name: str) -> Any:
    """How an argument of a class or function is annotated; None if it is not."""
    for kind in _takers(owner):
        try:
            hints = typing.get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
        except (AttributeError, NameError, TypeError):  # no annotations, or some that are not there at run time
            continue
        if name in hints:
            return hints[name]
    return None


def _takers(owner: Any) -> tuple[Any, ...]:
    """A function, or a class and its bases, to which it hands on arguments that it does not name itself."""
    if owner is None:
        return ()
    return inspect.getmro(owner) if inspect.isclass(owner) else (owner,)


def _parameters(owner: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(owner).parameters
    except (TypeError, ValueError):  # written in C
        return {}
