"""jsonargparse's private names: its actions, and what the frames of its functions say of a refused value."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from eigenscope.adapters import Library, MissingNameError, report_fallback

_JSONARGPARSE = Library("jsonargparse")
_ACTIONS, _TYPES, _UTIL = "jsonargparse._actions", "jsonargparse._typehints", "jsonargparse._util"


@dataclass(frozen=True)
class OptionStep:
    """The parser checks the value of an option, whose dotted name is ``key``."""

    key: str


@dataclass(frozen=True)
class ClassStep:
    """The parser reads the ``arguments`` of a class (or function) ``owner`` with a parser of their own."""

    owner: Any
    arguments: Any
    parser: ArgumentParser


@dataclass(frozen=True)
class ValueStep:
    """The parser fits a ``value`` to an ``annotation``."""

    value: Any
    annotation: Any


def step_of(frame: FrameType) -> OptionStep | ClassStep | ValueStep | None:
    """What jsonargparse was doing in a frame; None in any other function.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    local = _JSONARGPARSE.local
    if frame.f_code is _JSONARGPARSE.get(_JSONARGPARSE.get(_TYPES, "ActionTypeHint"), "_check_type").__code__:
        return OptionStep(local(frame, "self").dest)
    if is_of_class(frame):
        if "parser" not in frame.f_locals:  # it has not come to the arguments
            return None
        return ClassStep(local(frame, "val_class"), local(frame, "value").get("init_args"), local(frame, "parser"))
    if frame.f_code is _JSONARGPARSE.get(_TYPES, "adapt_typehints").__code__:
        given = frame.f_locals.get("val_input")  # which is left as it was written, if it was a mapping
        value = local(frame, "val")
        return ValueStep(given if value is None or isinstance(given, dict) else value, local(frame, "typehint"))
    return None


def is_of_class(frame: FrameType) -> bool:
    """Whether jsonargparse was reading a class and its arguments in a frame.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    return frame.f_code is _JSONARGPARSE.get(_TYPES, "adapt_class_type").__code__


def union_errors(frame: FrameType) -> list[BaseException]:
    """The errors of a union's branches, if a frame is the one that raises when none has fitted.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    if frame.f_code is not _JSONARGPARSE.get(_TYPES, "raise_union_unexpected_value").__code__:
        return []
    errors: list[BaseException] = _JSONARGPARSE.local(frame, "exceptions")
    return errors


def lacks_subcommand(frame: FrameType | None) -> bool:
    """Whether the parser found no subcommand in a frame."""
    return frame is not None and frame.f_code.co_name == "get_subcommands"


def missing_keys(frame: FrameType | None) -> list[str] | None:
    """The required keys that the parser missed in a frame; None if it was doing something else.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    if frame is None or frame.f_code.co_name != "check_required":
        return None
    return list(_JSONARGPARSE.local(frame, "missing"))


def unknown_key(frame: FrameType | None) -> str | None:
    """The key that the parser did not know in a frame; None if it was doing something else.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    if frame is None or frame.f_code.co_name != "check_values":
        return None
    return str(_JSONARGPARSE.local(frame, "key"))


def refused_group(frame: FrameType | None) -> tuple[str, Any] | None:
    """The name of a group of options, and the value that it was given as a whole, if a frame is of its action.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    action = frame and frame.f_locals.get("self")
    if frame is None or not isinstance(action, _JSONARGPARSE.get(_ACTIONS, "_ActionConfigLoad")):
        return None
    return action.dest, frame.f_locals.get("value")


def option_groups(parser: ArgumentParser) -> Iterator[str]:
    """The names of a parser's groups of options; none, and a note on stderr, where jsonargparse is another one."""
    try:
        kind = _JSONARGPARSE.get(_ACTIONS, "_ActionConfigLoad")
        names = [action.dest for action in _JSONARGPARSE.get(parser, "_actions") if isinstance(action, kind)]
    except MissingNameError as missing:
        report_fallback("a plain value for a group of options is refused late and at length", missing)
        return iter(())
    return iter(names)


def option_strings(parser: argparse.ArgumentParser) -> list[str]:
    """A parser's options, with their hyphens.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    return list(_JSONARGPARSE.get(parser, "_option_string_actions"))


def subcommand_names(parser: ArgumentParser) -> list[str]:
    """A parser's subcommands.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    action = _JSONARGPARSE.get(parser, "_subcommands_action")
    return list(action.choices or ()) if action else []


def subcommand_parser(parser: ArgumentParser, name: str) -> ArgumentParser | None:
    """The parser of a subcommand; None if there is none of this name.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    action = _JSONARGPARSE.get(parser, "_subcommands_action")
    below: ArgumentParser | None = _JSONARGPARSE.get(action, "_name_parser_map").get(name) if action else None
    return below


def option_annotation(parser: ArgumentParser, key: str) -> Any:
    """The annotation of an option; None if it has none.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    actions: list[argparse.Action] = _JSONARGPARSE.get(parser, "_actions")
    action = next((action for action in actions if action.dest == key), None)
    is_typed = isinstance(action, _JSONARGPARSE.get(_TYPES, "ActionTypeHint"))
    return _JSONARGPARSE.get(action, "_typehint") if is_typed else None


def nested_key(value: Any) -> tuple[str, Any] | None:
    """Key and value of what was given for a part of an option, ``--option.key value``; None of anything else.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    return (value.key, value.val) if isinstance(value, _JSONARGPARSE.get(_UTIL, "NestedArg")) else None


def subclass_paths(kind: type) -> list[str]:
    """The import paths of all loaded classes that can stand for a class.

    Raises:
        MissingNameError: jsonargparse is another one inside.
    """
    paths: list[str] = _JSONARGPARSE.get(_TYPES, "get_all_subclass_paths")(kind)
    return paths


def without_parser(value: Any) -> Any:
    """What a parser has instantiated, with plain partials of classes in place of those that hold the parser.

    For an argument that is a callable which makes an object, such as an optimizer, jsonargparse makes a partial of its
    own instantiation, which holds the parser and through it the program: nothing with such an attribute could be copied
    or pickled. ``functools.partial(cls, **init_args)`` makes the same object.

    Args:
        value: anything; lists, tuples, dictionaries and namespaces are looked through.
    """
    if isinstance(value, partial) and value.args and getattr(value.func, "__module__", "").startswith("jsonargparse."):
        return partial(value.args[-1], **{name: without_parser(part) for name, part in value.keywords.items()})
    if isinstance(value, Namespace):
        for name, part in vars(value).items():
            setattr(value, name, without_parser(part))
    elif type(value) is dict:
        return {name: without_parser(part) for name, part in value.items()}
    elif type(value) in (list, tuple):
        return type(value)(without_parser(part) for part in value)
    return value
