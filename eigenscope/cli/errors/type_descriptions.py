"""Descriptions of type annotations for error messages, in the words of Python and YAML."""

import collections.abc
import inspect
import typing
from types import NoneType, UnionType
from typing import Any, Literal, Union

from torch import Tensor

from eigenscope.cli.errors.suggestions import listed

_WORDS = {bool: "bool", int: "int", float: "float", str: "str", NoneType: "null"}


def branches(annotation: Any) -> list[Any]:
    """The alternatives of a union, nested ones too; of anything else itself."""
    if typing.get_origin(annotation) in (Union, UnionType):
        return [branch for part in typing.get_args(annotation) for branch in branches(part)]
    return [annotation]


def choices(annotation: Any) -> list[str]:
    """The values that an annotation lists by ``Literal``, as one writes them."""
    literals = [branch for branch in branches(annotation) if typing.get_origin(branch) is Literal]
    return list(dict.fromkeys(str(value) for literal in literals for value in typing.get_args(literal)))


def classes(annotation: Any) -> list[type]:
    """The classes of which an option takes a subclass, directly, in a list or as what a callable returns.

    A tensor is none: nobody can write one, and next to ``float`` it only means that a program may give one.
    """
    found: list[type] = []
    for branch in branches(annotation):
        origin, arguments = typing.get_origin(branch), typing.get_args(branch)
        if origin is collections.abc.Callable:
            found += classes(arguments[-1])
        elif origin in (list, tuple, set) or (inspect.isclass(origin) and issubclass(origin, collections.abc.Iterable)):
            found += [kind for argument in arguments for kind in classes(argument)]
        elif inspect.isclass(branch) and branch.__module__ != "builtins" and branch is not Tensor:
            found.append(branch)
    return list(dict.fromkeys(found))


def in_words(annotation: Any) -> str:
    """What an annotation allows, as the object of "expected": ``int or null``."""
    parts = _writable(annotation)
    words = [*choices(annotation), *(_word(part) for part in parts if typing.get_origin(part) is not Literal)]
    return listed(dict.fromkeys(words), "or")


def _writable(annotation: Any) -> list[Any]:
    """The alternatives that say something of their own."""
    parts = branches(annotation)
    return [part for part in parts if float not in parts or part not in (int, Tensor)]


def _word(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return f"a subclass of {_names(classes(annotation))}" if classes(annotation) else "a function or a class"
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        return "a mapping"
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Iterable):
        if origin is tuple and Ellipsis not in arguments:
            return _tuple(arguments)
        items = [_word(part) for argument in arguments for part in _writable(argument) if part is not Ellipsis]
        return f"list[{' | '.join(dict.fromkeys(items))}]" if items else "list"
    if inspect.isclass(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _tuple(arguments: tuple[Any, ...]) -> str:
    """A list of a certain length: ``list[float] of length 2``, or ``[str, int]``."""
    if not arguments:
        return "an empty list"
    items = [" | ".join(_word(part) for part in _writable(argument)) for argument in arguments]
    if len(set(items)) == 1:
        return f"list[{items[0]}] of length {len(items)}"
    return f"[{', '.join(items)}]"


def _names(kinds: list[type]) -> str:
    return listed([kind.__name__ for kind in kinds], "or")
