"""Label of a run: what it has otherwise than the configuration file that it was started with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from eigenscope.callbacks.reporting.run_identity import only_watches
from eigenscope.cli.errors.class_names import ABSENT, argument_default, class_at
from eigenscope.cli.errors.config_location import config_values, options
from eigenscope.cli.resume.affecting_callbacks import named_callbacks
from eigenscope.cli.resume.config_differences import as_plain, dataclass_of
from eigenscope.cli.shipped_configs import shipped_name
from eigenscope.results.settings import (
    CALLBACKS,
    SEED,
    flat_settings,
    is_left_out,
    is_same,
    setting_text,
    short_names,
)

Config = Mapping[str, Any]


def run_label(args: Sequence[str], now: Config, resolve: Callable[[list[str]], Config | None]) -> list[str]:
    """What a fit has otherwise than its first configuration file, in parts.

    First what the file is called if the run is called otherwise, then ``+ name`` of each further file, then each
    setting that options have changed: ``clamp=null``. A setting goes by the end of its dotted name
    that no other has. Where files are, what is shown, and where it is computed, is left out. A file that holds a label,
    as the ``config.yaml`` of a run does, begins with that.

    Args:
        args: the command line, after the name of the program.
        now: the resolved configuration, plain values.
        resolve: gives the configuration that files alone stand for; None if they are not enough for one.
    """
    files = [file for file in config_values(args) if Path(file).is_file()]
    files.sort(key=lambda file: not {"model", "data"} <= (_raw(file) or {}).keys())  # the experiment, then overlays
    given = [(option, value) for option, value in options(args) if option not in ("--config", "-c")]
    given += [("--config", text) for text in config_values(args) if text not in files]
    base: Config | None = None
    if files:
        base = resolve([part for file in files for part in ("--config", file)]) if given else now
    if base is None:  # an option at a time, as written
        changed = list(_written(given))
    elif base is now:
        changed = []
    else:
        changed = list(_changes(base, now))
    names = short_names([path for path, _ in changed], flat_settings(now, watching_callbacks(now)))
    texts = [_part(names[path], path, value) for path, value in changed]
    inherited = _parts((base or {}).get("label"))
    own = [part for part in _parts(now.get("label")) if part not in inherited]
    first = inherited or own or not files or "label" in (_raw(files[0]) or {})
    begin = [*inherited, *own] if first else _file_part(files[0], now)
    keys = tuple(f"{text.partition('=')[0]}=" for text in texts if "=" in text)
    return [
        *(part for part in begin if not keys or not part.startswith(keys)),
        *(f"+ {_file_name(file)}" for file in files[1:]),
        *texts,
    ]


def file_parts(files: Sequence[str]) -> set[str]:
    """The parts of a label that name its files."""
    return {*(f"+ {_file_name(file)}" for file in files), shipped_name(Path(files[0])) or Path(files[0]).name}


def watching_callbacks(config: Config) -> set[str]:
    """The names of the callbacks of a configuration that only watch."""
    return {name.partition("#")[0] for name in named_callbacks(config)} - set(_taking_part(config))


def _file_name(file: str) -> str:
    return shipped_name(Path(file)) or Path(file).stem


def _parts(label: Any) -> list[str]:
    return [label] if isinstance(label, str) else list(label or [])


def _written(given: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """The settings that options name, the later of two wins."""
    last = {"".join(option.removeprefix("--").split("init_args.")): value for option, value in given}
    for path, value in last.items():
        if not is_left_out(path := SEED if path == "seed_everything" else path):
            yield path, value


def _raw(file: str) -> Any:
    content = yaml.safe_load(Path(file).read_text())
    return content if isinstance(content, dict) else None


def _file_part(file: str, now: Config) -> list[str]:
    """The file's name, if the experiment is not called after it."""
    known = shipped_name(Path(file))
    logger = (now.get("trainer") or {}).get("logger")
    logger = logger[0] if isinstance(logger, list) and logger else logger
    name = ((logger.get("init_args") or {}).get("name") if isinstance(logger, Mapping) else None) or ""
    same = {Path(file).stem, *([known, known.replace("/", "_")] if known else [])}
    return [] if name in same else [known or Path(file).name]


def _part(name: str, path: str, value: Any) -> str:
    if path.startswith(f"{CALLBACKS}.") and isinstance(value, bool) and path.count(".") == CALLBACKS.count(".") + 1:
        return f"{'+' if value else '−'} {path.rpartition('.')[2]}"
    return f"{name}={setting_text(value)}"


def _changes(base: Config, now: Config) -> Iterator[tuple[str, Any]]:
    for part, owner in {"seed_everything": None, "model": None, "data": None, "trainer": Trainer}.items():
        before, after = as_plain(base.get(part)), as_plain(now.get(part))
        if part == "trainer":
            before, after = ({k: v for k, v in (x or {}).items() if k != "callbacks"} for x in (before, after))
        yield from _walk(before, after, SEED if part == "seed_everything" else part, owner)
    before, after = _taking_part(base), _taking_part(now)
    for name in dict.fromkeys([*before, *after]):
        path = f"{CALLBACKS}.{name}"
        if (name in before) != (name in after):
            yield path, name in after
        if name in after:
            nothing = {"class_path": after[name]["class_path"], "init_args": {}}
            yield from _walk(before.get(name, nothing), after[name], path, None)
    if now.get("warm_start") != base.get("warm_start"):
        yield "warm_start", now.get("warm_start")


def _taking_part(config: Config) -> dict[str, dict[str, Any]]:
    """The callbacks that do not only watch, by name."""
    named = named_callbacks(config)
    return {name: each for name, each in named.items() if not only_watches(class_at(each["class_path"]))}


def _walk(before: Any, after: Any, path: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """The values below a path that have changed; ``owner`` is the class whose arguments are there, if it is known."""
    if is_left_out(path):
        return
    if isinstance(after, Mapping):
        known = before if isinstance(before, Mapping) else {}
        if "class_path" in after:
            owner = class_at(after["class_path"])
            if known.get("class_path") != after["class_path"]:
                yield path, after["class_path"].rpartition(".")[2]
            for below in ("init_args", "dict_kwargs"):
                yield from _arguments(known.get(below) or {}, after.get(below) or {}, path, owner)
            return
        found = list(_arguments(known, after, path, owner))
        yield from found
        yield from ((f"{path}.{key}", None) for key in known if key not in after)
        if not found and known is not before:
            yield path, after
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after) and _has_maps(after):
        for number, (left, right) in enumerate(zip(before, after, strict=True)):
            yield from _walk(left, right, f"{path}.{number}", owner)
    elif not is_same(before, after, path):
        yield path, after


def _arguments(before: Config, after: Config, path: str, owner: Any) -> Iterator[tuple[str, Any]]:
    for key, value in after.items():
        left = before[key] if key in before else as_plain(argument_default(owner, key))
        yield from _walk(None if left is ABSENT else left, value, f"{path}.{key}", dataclass_of(owner, key))


def _has_maps(items: list[Any]) -> bool:
    return any(isinstance(item, Mapping) for item in items)
