"""Argument parser whose errors are one sentence."""

import argparse
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

from eigenscope import renamed
from eigenscope.adapters import MissingNameError, report_fallback
from eigenscope.adapters.jsonargparse_names import option_groups, without_parser
from eigenscope.cli.errors.class_names import argument_annotation, argument_default, class_at
from eigenscope.cli.errors.type_descriptions import branches


class UsageError(Exception):
    """What was asked for cannot be understood; the message is one sentence that says why."""


class ExplainingParser(ArgumentParser):
    """Argument parser that raises :class:`UsageError` with one sentence instead of printing a usage and exiting.

    Attributes:
        packages: names of packages whose re-exports are the classes that a configuration names.
        linked: keys that another part of the configuration fills in when it is built.
        more_subcommands: subcommands that somebody else takes care of.
    """

    packages: ClassVar[Sequence[str]] = ()
    more_subcommands: ClassVar[Sequence[str]] = ()
    linked: ClassVar[Sequence[str]] = ()

    @staticmethod
    def explain(error: Exception, parser: Any) -> str | None:
        """One sentence for an error of a parser, in a subclass; None leaves jsonargparse's own words."""
        return None

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parses.

        Raises:
            UsageError: it does not.
        """
        try:
            config: Namespace = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:  # of a file that is no text, which jsonargparse lets through
            self.error(str(error), error)
        except SystemExit as stop:
            if stop.code in (None, 0):  # --help, --print_config
                raise
            module = _being_imported(stop)
            raise UsageError(f"{module} cannot be imported: SystemExit: {stop.code}") from stop
        _write_out_texts(config)
        for group in option_groups(self):  # jsonargparse takes `trainer: 5` of a file, and fails when it builds one
            if not isinstance(config.get(group), Namespace):
                refused = NoOptionsError(group, config.get(group))
                self.error(str(refused), refused)
        plain = config.as_dict()[config.subcommand] if "subcommand" in config else config.as_dict()
        found = unfit_null(plain, self.linked)
        if found is not None:
            null = NullError(*found)
            self.error(str(null), null)
        return config

    def instantiate(self, *args: Any, **kwargs: Any) -> Namespace:
        """Makes the objects of a configuration; callables among their arguments do not hold the parser."""
        made: Namespace = without_parser(super().instantiate(*args, **kwargs))
        return made

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Explains an error, unless this is the parser of a nested class: then the outermost will.

        Raises:
            UsageError: always, of the outermost parser.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        sentence = None
        try:
            sentence = self.explain(ex or argparse.ArgumentError(None, message), self)
        except MissingNameError as missing:
            report_fallback("errors of the command line are told in jsonargparse's own words", missing)
        except (ImportError, LookupError, AttributeError):  # another jsonargparse inside, in a way that has no name
            pass
        raise UsageError(sentence or " ".join(message.split())) from ex


class NoOptionsError(TypeError):
    """A group of options was set to a plain value.

    Attributes:
        group: its key.
        value: the value.
    """

    def __init__(self, group: str, value: object) -> None:
        super().__init__(f"{group} must hold options, got {value}")
        self.group = group
        self.value = value


class NullError(TypeError):
    """An argument of a class is null and should not be.

    Attributes:
        path: the parts of its key.
        annotation: the argument's.
    """

    def __init__(self, path: list[str], annotation: Any) -> None:
        super().__init__(f"{'.'.join(path)} must not be null")
        self.path = path
        self.annotation = annotation


def _write_out_texts(value: Any) -> None:
    """Replaces members of enumerations that are texts, such as defaults of Lightning's, by plain texts, in place.

    A configuration that holds one cannot be written to a file.
    """
    items = vars(value).items() if isinstance(value, Namespace) else value.items() if isinstance(value, dict) else ()
    pairs: list[tuple[Any, Any]] = list(enumerate(value)) if isinstance(value, list) else list(items)
    for key, item in pairs:
        if isinstance(item, str) and isinstance(item, Enum):
            plain = str(item.value)
            setattr(value, key, plain) if isinstance(value, Namespace) else value.__setitem__(key, plain)
        else:
            _write_out_texts(item)


def _being_imported(error: BaseException) -> str:
    """The module whose code raised an error while it was imported, and the line."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_code.co_name == "<module>":
            return f"{frame.f_globals.get('__name__')} ({Path(frame.f_code.co_filename).name}, line {line})"
    return "what the command line names"


_PLAIN = (bool, int, float, str)


def unfit_null(config: Mapping[str, Any], linked: Sequence[str] = ()) -> tuple[list[str], Any] | None:
    """The first argument of a class that is null and should not be.

    Args:
        config: resolved, as nested dictionaries and lists.
        linked: dotted keys that are filled in later.

    Returns:
        The parts of its key, and the argument's annotation, of plain types and literals; None if there is none.
    """
    return next((found for found in _unfit(config, [], None) if ".".join(found[0]) not in linked), None)


def _unfit(value: Any, path: list[str], owner: Any) -> Iterator[tuple[list[str], Any]]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            owner = class_at(value["class_path"])
        for key, item in value.items():
            if item is not None:
                yield from _unfit(item, [*path, key], owner if key == "init_args" else None)
            elif owner is not None and path[-1] == "init_args":
                annotation = argument_annotation(owner, key)
                if _is_plain(annotation) and argument_default(owner, key) is not None:
                    yield [*path, key], annotation
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unfit(item, [*path, str(number)], None)


def _is_plain(annotation: Any) -> bool:
    parts = branches(annotation)
    return all(part in _PLAIN or get_origin(part) is Literal for part in parts)


@contextmanager
def loading_present_names(notes: dict[str, None]) -> Iterator[None]:
    """A context in which jsonargparse reads configuration files of version 0.4 as if written today."""
    load = get_loader("yaml")
    set_loader("yaml", lambda text: renamed.configuration(load(text), notes.setdefault), (yaml.YAMLError,))
    try:
        yield
    finally:
        set_loader("yaml", load, (yaml.YAMLError,))
