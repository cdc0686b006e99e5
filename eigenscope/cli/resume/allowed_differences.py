"""``--resume_allow KEY``: what of a configuration may differ from the checkpoint's on purpose."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from eigenscope.cli.errors.class_names import ABSENT
from eigenscope.cli.errors.suggestions import hint, listed, nearest_key
from eigenscope.cli.resume.affecting_callbacks import loaded_class, named_callbacks
from eigenscope.cli.resume.config_differences import Config, Difference


def allow(
    found: Sequence[Difference], keys: Sequence[str], saved: Config, now: Config
) -> tuple[list[Difference], list[Difference], str | None]:
    """Parts differences into those that some keys allow and the others.

    Args:
        found: the contradictions of two configurations.
        keys: dotted; each allows itself and all below it.
        saved: the resolved configuration in a checkpoint.
        now: the resolved configuration.

    Returns:
        The allowed differences, the others, and one line that says what was allowed and which keys allow nothing.

    Raises:
        ValueError: a key is in neither configuration, or what it allows could not take effect.
    """
    known = {*_keys(saved), *_keys(now), *(beginning for each in found for beginning in _beginnings(each.path))}
    for key in keys:
        if key not in known:
            unknown, meant, names = nearest_key(key, known)
            raise ValueError(f"resume_allow: there is no key {unknown} to differ{hint(meant, names, 'there are')}")
    allowed = [each for each in found if any(_is_at_or_below(each.path, key) for key in keys)]
    for each in allowed:
        if reason := _reason_against(each):
            raise ValueError(f"resume_allow cannot permit {each}: {reason}")
    idle = [key for key in dict.fromkeys(keys) if not any(_is_at_or_below(each.path, key) for each in allowed)]
    parts = ["; ".join(map(str, allowed))] if allowed else []
    if idle:
        parts.append(f"nothing contradicts the checkpoint at {listed(idle)}")
    line = f"Allowed by --resume_allow: {'; '.join(parts)}." if parts else None
    return allowed, [each for each in found if each not in allowed], line


def recorded(allowed: Iterable[Difference]) -> dict[str, list[Any]]:
    """Allowed differences for the run's record: dotted key to the checkpoint's value and the new one."""
    return {each.path: [None if value is ABSENT else value for value in (each.saved, each.now)] for each in allowed}


def changed_options(allowed: Iterable[Difference], saved: Config, now: Config) -> tuple[dict[str, str], dict[str, str]]:
    """What of allowed differences a restored state of optimizers and schedules would undo.

    Args:
        allowed: differences of two configurations.
        saved: the resolved configuration in a checkpoint.
        now: the resolved configuration.

    Returns:
        Names of changed arguments by their dotted keys: of optimizers; of schedules, with what those count.
    """
    options, schedule = {}, {}
    for each in allowed:
        kinds = [kind for config in (saved, now) for kind in _classes_around(config, each.path)]
        if each.path.endswith(".lr_interval") or any(issubclass(kind, LRScheduler) for kind in kinds):
            schedule[each.path] = each.path.rpartition(".")[2]
        elif any(issubclass(kind, Optimizer) for kind in kinds):
            options[each.path] = each.path.rpartition(".")[2]
    return options, schedule


def _reason_against(difference: Difference) -> str | None:
    """Why a difference could not take effect in a resumed run."""
    if difference.path == "seed_everything":
        return "random streams continue from those of the checkpoint; another seed begins a new run, with --warm_start"
    kind = loaded_class(difference.now) if difference.path.endswith(".class_path") else None
    if kind is not None and issubclass(kind, Optimizer):
        return "the state of one optimizer is none of another's; another optimizer begins a new run, with --warm_start"
    return None


def _classes_around(config: Config, path: str) -> Iterator[type]:
    """The classes that a configuration names at a place and on the way to it."""
    part: Any = config
    for key in path.split("."):
        part = part.get(key) if isinstance(part, Mapping) else None
        kind = loaded_class(part["class_path"]) if isinstance(part, Mapping) and "class_path" in part else None
        if kind is not None:
            yield kind


def _keys(config: Config) -> Iterator[str]:
    """Every dotted key of a configuration, callbacks by the names of their classes."""
    trainer = config.get("trainer")
    if isinstance(trainer, Mapping):
        config = {**config, "trainer": {**trainer, "callbacks": named_callbacks(config)}}
    yield from _below(config, "")


def _below(part: Any, path: str) -> Iterator[str]:
    if path:
        yield path
    entries = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list) else ()
    for key, entry in entries:
        if isinstance(part, Mapping) or isinstance(entry, Mapping):
            yield from _below(entry, f"{path}.{key}" if path else str(key))


def _beginnings(path: str) -> Collection[str]:
    parts = path.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _is_at_or_below(path: str, key: str) -> bool:
    return f"{path}.".startswith(f"{key}.")
