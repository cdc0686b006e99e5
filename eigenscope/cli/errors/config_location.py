"""Location of a configuration value: a command line option, or a line of a file; misplaced arguments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from eigenscope.cli.errors.suggestions import nearest

_CONFIG = ("--config", "-c")


@dataclass(frozen=True)
class _Place:
    """A key as it was written: its name or its line and name, and its value if that is a scalar."""

    text: str
    value: str | None


def options(args: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a command line and what follows each: ``--a=b`` and ``--a b`` are ("--a", "b")."""
    found = []
    for arg, after in zip(args, [*args[1:], ""], strict=False):
        if arg.startswith("-"):
            option, equals, value = arg.partition("=")
            found.append((option, value if equals else after))
    return found


def config_values(args: Sequence[str]) -> list[str]:
    """What follows ``--config`` on a command line: names of files, or YAML itself."""
    return [value for option, value in options(args) if option in _CONFIG and value]


def origin(keys: Sequence[Sequence[str]], value: object, args: Sequence[str], beside: str | None = None) -> str:
    """Names a key as it was written.

    Args:
        keys: the parts of the key, or of several keys that may stand for it, the most telling first; ``init_args``
            between the parts may be missing in what was written.
        value: what it was set to, which tells several places apart, such as items of a list.
        args: the command line.
        beside: the class that the key must have been written beside, by its ``class_path``; None for any place.

    Returns:
        ``--a.b`` if it was written on the command line; ``file, line 3: a.b`` of a file; else the last key. What comes
        later on the command line is looked at first.
    """
    wanted = [_without_init_args(key) for key in keys]
    places = [place for key in wanted for place in _on_command_line(key, args, beside)]
    places += [
        place for file in reversed(config_values(args)) for key in wanted for place in _in_file(key, file, beside)
    ]
    same = [place for place in places if place.value == str(value)]
    return next((place.text for place in same + places), ".".join(keys[-1]))


def _without_init_args(key: Sequence[str]) -> list[str]:
    return [*(part for part in key[:-1] if part != "init_args"), *key[-1:]]


def _on_command_line(wanted: list[str], args: Sequence[str], beside: str | None) -> Iterator[_Place]:
    for option, text in reversed(options(args)):
        parts = option.removeprefix("--").rstrip("+").split(".")
        for length in range(1, len(parts) + 1):
            if beside is None and _without_init_args(parts[:length]) == wanted:
                yield _Place(f"--{'.'.join(parts[:length])}", text if length == len(parts) else None)
        given = [part for part in parts if part != "init_args"]
        if given == wanted[: len(given)] != wanted:  # the rest may stand in its value
            found = _places(_compose(text), wanted[len(given) :], beside)
            yield from (_Place(f"--{'.'.join(parts)}", value) for _, _, value in found)


def _in_file(wanted: list[str], file: str, beside: str | None) -> Iterator[_Place]:
    for keys, line, value in _places(_compose(file), wanted, beside):
        where = f"{file}, line {line}" if _is_file(file) else "--config"
        yield _Place(f"{where}: {'.'.join(keys)}", value)


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # YAML is too long for a name
        return False


def _compose(source: str) -> yaml.Node | None:
    """The nodes of a file, or of YAML itself; None of anything else."""
    try:
        text = Path(source).read_text() if _is_file(source) else source
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _places(
    node: yaml.Node | None, wanted: Sequence[str], beside: str | None, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int, str | None]]:
    """All places of a key below a node, as (parts, line, scalar); lists and ``init_args`` are looked through."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _places(item, wanted, beside, above)
    if not isinstance(node, yaml.MappingNode) or not wanted:
        return
    for key, value in node.value:
        name = str(key.value).rstrip("+")
        if name == "init_args" != wanted[0]:
            yield from _places(value, wanted, beside, (*above, name))
        elif name == wanted[0] and len(wanted) > 1:
            yield from _places(value, wanted[1:], beside, (*above, name))
        elif name == wanted[0] and (beside is None or _names(node, beside)):
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                scalar: str | None = item.value if isinstance(item, yaml.ScalarNode) else None
                line = (key if scalar is None else item).start_mark.line + 1
                yield (*above, name), line, scalar


def _names(node: yaml.MappingNode, class_path: str) -> bool:
    return any(key.value == "class_path" and value.value == class_path for key, value in node.value)


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
