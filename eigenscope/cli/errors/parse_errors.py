"""Parse errors of a command line or a configuration file, explained in one sentence."""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from eigenscope.adapters.jsonargparse_names import (
    lacks_subcommand,
    missing_keys,
    nested_key,
    option_annotation,
    option_strings,
    refused_group,
    subcommand_names,
    subcommand_parser,
    unknown_key,
)
from eigenscope.cli.errors.class_names import class_fault, own_classes
from eigenscope.cli.errors.config_location import Misplaced, config_values, misplaced, origin
from eigenscope.cli.errors.parse_failure import Refusal, refusal
from eigenscope.cli.errors.parser import ExplainingParser, NoOptionsError, NullError
from eigenscope.cli.errors.suggestions import hint, listed, nearest, nearest_key
from eigenscope.cli.errors.type_descriptions import choices, classes, in_words

_CLASS_KEYS = ("class_path", "init_args")
_UNRECOGNIZED = "unrecognized arguments: "


def explain_parse_error(error: Exception, parser: ExplainingParser) -> str:
    """One sentence of what a parser did not take, where that was written, and what was probably meant.

    Args:
        error: what jsonargparse raised, with its traceback and its causes.
        parser: the parser that was asked, of the subcommand if it was known by then.

    Raises:
        MissingNameError: the installed jsonargparse is another one inside.
    """
    found = refusal(error)
    args = list(getattr(parser, "args", ()))
    if isinstance(error, NoOptionsError):
        return _not_options(error.group, error.value, args)
    if isinstance(error, NullError):
        return f"{origin([error.path], None, args)}: expected {in_words(error.annotation)}, got null"
    if isinstance(error, argparse.ArgumentError) and not found.path:
        return _argument_fault(error, parser, args)
    if not found.path and (fault := _file_fault(args)):
        return fault
    if lacks_subcommand(found.frame):
        return f"a subcommand is missing: {listed(_subcommands(parser), 'or')}"
    if (missing := missing_keys(found.frame)) is not None:
        return _missing(found, missing, parser)
    if (beside := misplaced(found.arguments)) is not None:
        path = found.path[:-1] if found.path[-1] == "init_args" else found.path
        return _beside_class(beside, path, found.kind, parser, args)
    if (key := unknown_key(found.frame)) is not None:
        return _unknown_key(found, key, parser, args)
    if isinstance(found.reason, argparse.ArgumentError) and found.reason.message.startswith(_UNRECOGNIZED):
        return _unknown_key(found, _first_unrecognized(found.reason).removeprefix("--"), parser, args)
    if not isinstance(found.arguments, (NoneType, dict, Namespace, tuple)):  # a tuple is jsonargparse's nested option
        return _not_options(".".join(found.path), found.arguments, args)
    return _value_fault(found, parser, args)


def _first_unrecognized(error: argparse.ArgumentError) -> str:
    option, _, _ = error.message.removeprefix(_UNRECOGNIZED).split()[0].partition("=")
    return option.rstrip("+")


def _argument_fault(error: argparse.ArgumentError, parser: ExplainingParser, args: list[str]) -> str:
    """Of what the command line alone tells, before any value is looked at."""
    if error.message.startswith(_UNRECOGNIZED):
        name = _first_unrecognized(error)
        if not name.startswith("--"):
            return f"{name} is not understood: options begin with --"
        unknown, meant, here = nearest_key(name[2:], _options(parser))
        known = [f"--{other}" for other in here] if "." not in unknown else here
        return f"--{unknown} is unknown{hint(meant and f'--{meant}', known, 'known are')}"
    subcommands = _subcommands(parser)
    if subcommands and error.argument_name == "subcommand":
        typed = next((arg for arg in args if f"'{arg}'" in error.message), "")
        return f"there is no subcommand {typed}{hint(nearest(typed, subcommands), subcommands, 'there are')}"
    return f"{error.argument_name}: {error.message}" if error.argument_name else _one_line(error.message)


def _subcommands(parser: ExplainingParser) -> list[str]:
    names = subcommand_names(parser)
    return [*names, *parser.more_subcommands] if names else []


def _options(parser: ArgumentParser) -> list[str]:
    names = [name[2:] for name in option_strings(parser) if name.startswith("--")]
    return [name for name in names if name.rpartition(".")[2] not in ("help", "print_shtab") and name[-1] != "+"]


def _file_fault(args: list[str]) -> str | None:
    """What is wrong with one of the configuration files as a file."""
    for name in config_values(args):
        if isinstance(_loaded(name), dict):  # the configuration itself instead of a file's name
            continue
        file = Path(name)
        if not file.exists():
            beside = sorted(str(file.with_name(other.name)) for other in _beside(file) if other.suffix == file.suffix)
            return f"{name} does not exist{hint(nearest(name, beside), [], '')}"
        if not file.is_file():
            return f"{name} is not a file"
        try:
            content = yaml.safe_load(file.read_text())
        except UnicodeDecodeError:
            return f"{name} is not a text file"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            line = f", line {mark.line + 1}" if mark else ""
            return f"{name}{line}: this is not YAML: {_one_line(problem or str(error))}"
        if not isinstance(content, dict):
            return f"{name} is not a configuration: it holds {'nothing' if content is None else 'no options'}"
    return None


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _beside(file: Path) -> list[Path]:
    try:
        return list(file.parent.iterdir())
    except OSError:
        return []


def _missing(found: Refusal, missing: Sequence[str], parser: ExplainingParser) -> str:
    if found.owner is not None:
        full = listed([".".join([*found.path, name]) for name in missing])
        return f"{full} {_is_or_are(missing)} missing: {found.owner.__name__} needs {_it_or_them(missing)}"
    subcommand, _, _ = missing[0].partition(".")
    names = sorted(name.removeprefix(f"{subcommand}.") for name in missing)
    options = listed([f"--{name}" for name in names])
    known = {name: _offered(parser, subcommand, name) for name in names}
    offers = "; ".join(f"{name} can be {listed(offer, 'or')}" for name, offer in known.items() if offer)
    whole = f"{listed(names)} {_is_or_are(names)} missing: give {options}, or a --config with {_it_or_them(names)}"
    return f"{whole} ({offers})" if offers else whole


def _is_or_are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _it_or_them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _offered(parser: ExplainingParser, subcommand: str, name: str) -> list[str]:
    below = subcommand_parser(parser, subcommand) or parser
    return own_classes(option_annotation(below, name), parser.packages)


def _unknown_key(found: Refusal, key: str, parser: ExplainingParser, args: list[str]) -> str:
    if found.parser is None:
        subcommand, _, rest = key.partition(".")
        below = subcommand_parser(parser, subcommand)
        unknown, meant, here = nearest_key(rest if below else key, _options(below or parser))
        return f"{origin([unknown.split('.')], None, args)} is unknown{hint(meant, here, 'known are')}"
    unknown, meant, here = nearest_key(key, [*_options(found.parser), *_CLASS_KEYS])
    at = origin([[*found.path, *unknown.split(".")]], None, args)
    if meant is None and found.owner in classes(found.kind):
        known = own_classes(found.kind, parser.packages)
        if known and found.owner.__name__ not in known:  # nobody named it: it stood in for a class that was left out
            option = ".".join(found.path[:-1])
            return f"{at} comes before its class: name that with --{option} (known are {listed(known)})"
    here = [name for name in here if name not in _CLASS_KEYS]
    return f"{at}: {found.owner.__name__} has no argument {unknown}{hint(meant, here, 'it takes')}"


def _beside_class(beside: Misplaced, path: list[str], kind: Any, parser: ExplainingParser, args: list[str]) -> str:
    fault = class_fault(beside.name, kind, parser.packages)
    if fault is not None:
        return f"{origin([[*path, 'class_path'], path], beside.name, args)}: {fault}"
    key, meant = beside.misspelt() or (next(iter(beside.arguments)), None)
    at = origin([[*path, key]], beside.arguments[key], args, beside.name).removesuffix(f".{key}")
    if meant is not None:
        return f"{at}: {key} is unknown; did you mean {meant}?"
    return f"{at}: put {listed(beside.arguments)} below init_args of {beside.name}"


def _value_fault(found: Refusal, parser: ExplainingParser, args: list[str]) -> str:
    value, annotation, path = found.value, found.annotation, found.path
    if (group := refused_group(found.frame)) is not None:
        return _not_options(*group, args)
    if annotation is None:
        return _one_line(f"{origin([path], value, args)}: {found.reason}" if path else str(found.reason))
    if (nested := nested_key(value)) is not None:  # a key below an option whose class is wrong, or not known yet
        key, value = nested
        if key != "class_path":
            option = ".".join(path)
            at = origin([[*path, *key.split(".")]], value, args)
            known = hint(None, own_classes(annotation, parser.packages), "known are")
            return f"{at} comes before its class: name that with --{option}{known}"
    if (beside := misplaced(value)) is not None and classes(annotation):
        return _beside_class(beside, path, annotation, parser, args)
    is_spec = isinstance(value, (dict, Namespace))
    name = value.get("class_path") if is_spec else value
    if isinstance(name, str) and isinstance(_loaded(name), str) and classes(annotation):  # 0.9 names no class
        at = origin([[*path, "class_path"], path], name, args)
        if name.endswith((".yaml", ".yml", ".json")):
            return f"{at}: {name} does not exist"
        fault = class_fault(name, annotation, parser.packages)
        if fault is not None:
            return f"{at}: {fault}"
    elif not is_spec:
        meant = nearest(str(value), choices(annotation))
        expected = f"expected {in_words(annotation)}, got {_written(value)}"
        return f"{origin([path], value, args)}: {expected}{hint(meant, [], '')}"
    return _one_line(f"{origin([path], name, args)}: {found.reason}")


def _not_options(group: str, value: object, args: list[str]) -> str:
    at = origin([group.split(".")], value, args)
    return f"{at}: expected a mapping of options, or a file with one, got {_written(value)}"


def _written(value: object) -> str:
    if value in (None, "None"):  # jsonargparse makes a str of a null that it refused
        return "null"
    return repr(value) if isinstance(value, str) and isinstance(_loaded(value), str) else str(value)


def _one_line(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())
