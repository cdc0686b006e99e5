"""Build errors: what a class, or the trainer, refused, with the option that it comes from."""

import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from eigenscope.adapters import MissingNameError
from eigenscope.adapters.jsonargparse_names import ClassStep, step_of
from eigenscope.cli.errors.class_names import class_at
from eigenscope.cli.errors.config_location import origin
from eigenscope.cli.errors.error_cause import innermost, named, options_in, own_line

#: Errors whose words are a sentence; of others, and of somebody's own code, the type is said as well.
_SPOKEN = (ValueError, RuntimeError, TypeError, MisconfigurationException)
Built = tuple[list[str], Any, Mapping[str, Any]]


def explain_build(error: BaseException, config: Mapping[str, Any], args: Sequence[str]) -> str:
    """One sentence for what a class raised when it was built: its words, the line if it is not ours, and the option.

    Args:
        error: with its traceback and causes.
        config: resolved, of the subcommand, as nested dictionaries and lists.
        args: the command line.
    """
    words = _words(error)
    line = own_line(innermost(error)) or own_line(error)
    found = _built(error, config)
    if found is None:
        return words + (f" ({line})" if line else "")
    path, value, arguments = found
    at = _option(path, value, arguments, words, args)
    return f"{words} ({f'{line}, built by {at}' if line else at})"


def explain_setup(error: BaseException, config: Mapping[str, Any], args: Sequence[str]) -> str:
    """One sentence for what was refused before the first step, by an injected class such as an optimizer, or Lightning.

    Args:
        error: with its traceback and causes.
        config: resolved, of the subcommand, as nested dictionaries and lists.
        args: the command line.
    """
    found = _of_parts(error, config)
    if found is None:
        return explain_trainer(error, config["trainer"], args)
    path, name, arguments = found
    words = _words(error)
    return f"{words} ({_option(path, name, arguments, words, args)})"


def explain_trainer(error: BaseException, trainer: Mapping[str, Any], args: Sequence[str]) -> str:
    """One sentence for what the trainer refused: its words, and the options that they are about.

    Args:
        error: with its causes.
        trainer: its resolved options.
        args: the command line.
    """
    words = _words(error)
    if "--trainer." in words:
        return words
    plain = {name: value for name, value in trainer.items() if value is not None}
    about = options_in(words, list(plain))[:2]
    said = words.replace("-", "_").lower()
    accelerator = str(plain.get("accelerator"))
    if not about and accelerator not in ("auto", "cpu") and isinstance(error, ImportError):  # of a library it needs
        about = ["accelerator"] if str(plain.get("precision")).replace("-", "_") not in said else []
    about = about or [
        name
        for name, value in plain.items()
        if isinstance(value, str) and len(value) > 2 and value.replace("-", "_").lower() in said
    ]
    places = [origin([["trainer", name]], trainer[name], args) for name in about]
    return f"{words} ({', '.join(places)})" if places else words


def _words(error: BaseException) -> str:
    cause = innermost(error)
    shown = error if str(error) else cause
    words = " ".join(str(shown).split())
    if not isinstance(shown, _SPOKEN) or len(words.split()) < 3 or own_line(shown):
        words = named(shown)
    if cause is not shown and str(cause) and " ".join(str(cause).split()) not in words:
        words += f", because of {named(cause)}"
    return words


def _built(error: BaseException, config: Mapping[str, Any]) -> Built | None:
    """The part of a configuration whose class raised an error: the innermost that was being built."""
    parts = list(_classes(config, []))
    for kind in reversed(list(_kinds(error))):
        same = [part for part in parts if class_at(part[1]) is kind]
        if same:
            return same[0]
    return None


def _of_parts(error: BaseException, config: Mapping[str, Any]) -> Built | None:
    """The part of a configuration in whose code an error was raised, but for model and data, which call all others."""
    parts = [part for part in _classes(config, []) if part[0] not in (["model"], ["data"])]
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [part for owner in reversed(owners) for part in parts if class_at(part[1]) is type(owner)]
    return next(iter(found), None)


def _kinds(error: BaseException) -> Iterator[Any]:
    """The classes that were being built in the frames of an error, the outermost first."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        try:
            step = step_of(frame)
        except MissingNameError:
            step = None
        if isinstance(step, ClassStep):
            yield step.owner
        elif frame.f_code.co_name in ("__init__", "__post_init__", "__new__"):
            owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
            if owner is not None:
                yield owner if inspect.isclass(owner) else type(owner)


def _classes(value: Any, path: list[str]) -> Iterator[Built]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield path, value["class_path"], value.get("init_args") or {}
        for key, item in value.items():
            yield from _classes(item, [*path, key])
    elif isinstance(value, list):
        for item in value:
            yield from _classes(item, path)


def _option(path: list[str], name: str, arguments: Mapping[str, Any], words: str, args: Sequence[str]) -> str:
    """The option of the argument that the words name first; else of the class."""
    about = options_in(words, [key for key in arguments if len(key) > 1])
    if about:
        return origin([[*path, "init_args", about[0]]], arguments[about[0]], args)
    by_value = [key for key, value in arguments.items() if _is_quoted(value, words)]
    if len(by_value) == 1:
        return origin([[*path, "init_args", by_value[0]]], arguments[by_value[0]], args)
    return origin([[*path, "class_path"], path], name, args)


def _is_quoted(value: Any, words: str) -> bool:
    """Whether a value stands at the end of a sentence: ``Invalid learning rate: -1.0``."""
    return isinstance(value, int | float | str) and not isinstance(value, bool) and words.endswith(f" {value}")
