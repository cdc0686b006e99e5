"""Sources of a configuration: every file and option of a command line, in order, with what each of them sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eigenscope import renamed

Key = tuple[str, ...]
_CONFIG = ("--config", "-c")
_SILENT = ("ckpt_path", "resume_allow", "config")


@dataclass(frozen=True)
class Source:
    """A file or an option, and what it sets.

    Attributes:
        name: as written on the command line.
        is_file: whether it follows ``--config``.
        settings: values by key, without ``init_args``; the name of a class stands below its key, at ``class_path``.
        added: what is appended to a list (``callbacks+``), by key.
    """

    name: str
    is_file: bool
    settings: dict[Key, Any] = field(default_factory=dict)
    added: dict[Key, list[Any]] = field(default_factory=dict)

    def chooses(self, part: str) -> bool:
        """Whether it names the class of a part, such as the model."""
        return isinstance(self.settings.get((part,), self.settings.get((part, "class_path"))), str)

    @property
    def is_whole(self) -> bool:
        """Whether it names the classes of both model and data, as an experiment does and an overlay does not."""
        return self.is_file and self.chooses("model") and self.chooses("data")

    @property
    def text(self) -> str:
        """How a sentence calls it."""
        return f"--config {self.name}" if self.is_file else self.name


class ConfigFileError(ValueError):
    """A configuration file holds what a YAML parser passes over in silence."""


def sources(args: Sequence[str], subcommand: str) -> list[Source]:
    """The files and options of a command line, in order; what cannot be read is left to the parser to explain.

    Args:
        args: the command line.
        subcommand: whose name a file may give to all that it holds.

    Raises:
        ConfigFileError: a file sets a key twice, holds itself, or has a key that is no text.
    """
    found: list[Source] = []
    items: dict[str, int] = {}
    position = 0
    while position < len(args):
        option, equals, value = args[position].partition("=")
        position += 1
        if not option.startswith("-"):
            continue
        if not equals and position < len(args) and not args[position].startswith("--"):
            value, position = args[position], position + 1
        if option in _CONFIG:
            content = read(value)
            if isinstance(content, Mapping):
                inner = content.get(subcommand)
                found.append(_source(value, True, inner if isinstance(inner, Mapping) else content))
        elif option.startswith("--") and option[2:] not in _SILENT:
            name = option[2:].removesuffix("+")
            content = read(value) if value.endswith((".yaml", ".yml", ".json")) else _loaded(value)
            if option.endswith("+"):
                items[name] = items.get(name, 0) + 1
            found.append(_source(f"--{name}", False, {_of_item(option[2:], items): content}))
    return found


def _of_item(key: str, items: Mapping[str, int]) -> str:
    """Of an option below a list: the key with the number of the item, which is the one added last."""
    for name, number in items.items():
        if key.startswith(f"{name}."):
            return f"{name}.{number}{key.removeprefix(name)}"
    return key


def read(name: str) -> Any:
    """What a file, or YAML itself, holds; None of anything else.

    Raises:
        ConfigFileError: see :func:`sources`.
    """
    try:
        path = Path(name)
        is_file = path.is_file()
        text = path.read_text(encoding="utf-8-sig") if is_file else name
    except (OSError, ValueError):
        return None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _check(node, name if is_file else "--config", ())
        return renamed.configuration(yaml.safe_load(text))
    except (yaml.YAMLError, renamed.RemovedArgumentError):
        return None


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check(node: yaml.Node, file: str, above: tuple[yaml.Node, ...]) -> None:
    if any(node is other for other in above):
        raise ConfigFileError(f"{file}, line {node.start_mark.line + 1}: an alias (*) stands within what it repeats")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, file, (*above, node))
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise ConfigFileError(f"{file}, line {line}: the key {name} is not a text; put it in quotes")
            if name in lines:
                raise ConfigFileError(
                    f"{file}, line {line}: {name} is already given in line {lines[name]}; of a key that is given "
                    "twice YAML would drop the first"
                )
            lines[name] = line
            _check(value, file, (*above, node))


def _source(name: str, is_file: bool, content: Mapping[str, Any]) -> Source:
    source = Source(name, is_file)
    for key, is_added, value in _flat(content, ()):
        if is_added:
            source.added.setdefault(key, []).extend(value if isinstance(value, list) else [value])
        else:
            source.settings[key] = value
    return source


def _flat(content: Mapping[str, Any], above: Key) -> Iterator[tuple[Key, bool, Any]]:
    for name, value in content.items():
        *parts, last = str(name).split(".")
        is_added, last = last.endswith("+"), last.removesuffix("+")
        key = (*above, *(part for part in (*parts, last) if part != "init_args"))
        if isinstance(value, Mapping) and value and not is_added:
            yield from _flat(value, key)
        else:
            yield key, is_added, value
