"""Order of files and options: what a later one would silently undo of an earlier one is refused, or said."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from eigenscope.cli.errors.config_sources import Key, Source
from eigenscope.cli.errors.suggestions import listed


class ConfigOrderError(ValueError):
    """Something asked for on the command line would be undone by something after it."""


def check_order(given: Sequence[Source]) -> None:
    """Refuses sources of which a later one undoes what an earlier one asked for, where that cannot be meant.

    A file overrides experiments before it, and an option overrides files: that is what they are for. An experiment
    after an overlay, a file after an option, two experiments, and two overlays that choose different classes, or of
    which one replaces the list that the other adds to, are mistakes.

    Raises:
        ConfigOrderError: in one sentence, which names both and the key.
    """
    wholes = list(dict.fromkeys(source.name for source in given if source.is_whole))
    if len(wholes) > 1:
        raise ConfigOrderError(
            f"{listed([f'--config {name}' for name in wholes])} are whole experiments, each with a model and data "
            "of its own: give one, and after it files that change parts of it"
        )
    for first, second in combinations(given, 2):
        if first.is_whole or not second.is_file:
            continue
        early = [key for key in first.settings if key[0] in ("model", "data") and not first.chooses(key[0])]
        if second.is_whole and early:
            raise ConfigOrderError(
                f"{first.text} stands before {second.text}, which names the class whose {'.'.join(early[0])} it sets: "
                "put it after"
            )
        for key, change in _undone(first, second):
            if second.is_whole or not first.is_file:
                raise ConfigOrderError(
                    f"{first.text} stands before {second.text}, which would undo it ({change}): put it after"
                )
            if _is_class(key) or isinstance(first.settings.get(key), list) or key in first.added:
                raise ConfigOrderError(
                    f"{first.text} and {second.text} contradict each other, and the second would undo the first "
                    f"({change}): give one of them"
                )


def said_of_order(given: Sequence[Source]) -> list[str]:
    """What is meant to be undone but easily overlooked: one sentence each.

    These are lists of classes that a later source replaces, such as the callbacks of an experiment, and values that two
    overlays, or two options, set differently.
    """
    notes: dict[tuple[Key, str], str] = {}  # the last of each value, and of what each source has in a list
    for first, second in combinations(given, 2):
        for key, change in _undone(first, second):
            lost = _left_out(first, second, key)
            if lost:
                name = ".".join(key)
                notes[key, first.name] = (
                    f"{second.text} replaces {name} of {first.text}, so that {listed(lost)} "
                    f"{'is' if len(lost) == 1 else 'are'} left out; {name}+ would add to them"
                )
            elif not first.is_whole and (first.is_file == second.is_file or _is_class(key)):
                is_same = first.text == second.text
                what = f"{first.text} is given twice" if is_same else f"{second.text} overrides {first.text}"
                notes[key, ""] = f"{what}: {change}"
    return list(notes.values())


def _undone(first: Source, second: Source) -> Iterator[tuple[Key, str]]:
    """The keys that a later source sets differently, and how."""
    replaced = [key for key in (*first.settings, *first.added) if _setter(second, key) is not None]
    for key in dict.fromkeys(replaced):
        setter = _setter(second, key)
        assert setter is not None
        before = first.settings.get(key, first.added.get(key))
        after = second.settings[setter]
        if key in first.added or setter != key or not _same(key, before, after):
            yield key, f"{'.'.join(key)} {_short(before)} becomes {_short(after)}"
    for key, name in first.settings.items():  # a class may be named by itself, or at class_path
        other = key[:-1] if _is_class(key) else (*key, "class_path")
        after = second.settings.get(other)
        if isinstance(name, str) and isinstance(after, str) and not _same((*key, "class_path"), name, after):
            yield (*_plain(key), "class_path"), f"{'.'.join(_plain(key))} {name} becomes {after}"


def _plain(key: Key) -> Key:
    return key[:-1] if _is_class(key) else key


def _setter(second: Source, key: Key) -> Key | None:
    """The key of a later source that replaces what stands at a key, or below it."""
    if key in second.settings:
        return key
    for length in range(1, len(key)):
        above = key[:length]
        value = second.settings.get(above)
        if above in second.settings and (value is None or isinstance(value, list | bool)):
            return above
    return None


def _is_class(key: Key) -> bool:
    return key[-1] == "class_path"


def _same(key: Key, before: Any, after: Any) -> bool:
    if _is_class(key) and isinstance(before, str) and isinstance(after, str):
        if "." in before and "." in after:
            return before == after
        return before.rpartition(".")[2] == after.rpartition(".")[2]
    if isinstance(before, str | int | float) and isinstance(after, str | int | float):
        return bool(_number(before) == _number(after))
    return bool(before == after)


def _number(value: Any) -> Any:
    """YAML reads ``1e-3`` as a text, jsonargparse as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _left_out(first: Source, second: Source, key: Key) -> list[str]:
    """The classes in the list of an earlier source that are not in a later one's."""
    before = first.added.get(key) or first.settings.get(key)
    after = second.settings.get(key)
    kept = _names(after if isinstance(after, list) else [after])
    return [name for name in _names(before if isinstance(before, list) else []) if name not in kept]


def _names(entries: Sequence[Any]) -> list[str]:
    named = [entry.get("class_path") if isinstance(entry, Mapping) else None for entry in entries]
    named += [entry for entry in entries if isinstance(entry, str)]
    return [str(name).rpartition(".")[2] for name in named if name]


def _short(value: Any) -> str:
    """A value, or the names of classes in a list."""
    if isinstance(value, list) and _names(value):
        return f"[{', '.join(_names(value))}]"
    return "null" if value is None else str(value)
