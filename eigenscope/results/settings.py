"""Settings of a run that its result depends on, flat, with short names: what tells runs apart."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

#: The parts of a configuration that results depend on.
_PARTS = ("seed_everything", "model", "data", "trainer", "warm_start")
#: What of them says where a run computes, what it shows and where its files are.
_LEFT_OUT = frozenset(
    {
        *(f"trainer.{name}" for name in ("accelerator", "strategy", "num_nodes", "logger", "profiler", "fast_dev_run")),
        *(f"trainer.enable_{name}" for name in ("checkpointing", "progress_bar", "model_summary", "autolog_hparams")),
        *(f"trainer.{name}" for name in ("default_root_dir", "model_registry", "log_every_n_steps", "detect_anomaly")),
        "trainer.num_sanity_val_steps",
        *(f"data.{name}" for name in ("root", "cache_dir", "num_workers", "pin_memory", "persistent_workers")),
    }
)
CALLBACKS = "trainer.callbacks"
SEED = "seed"
#: Options of which 1 means one batch and 1.0 all of them.
_COUNTS_OR_SHARES = ("limit_", "overfit_batches", "val_check_interval")
_LONGEST = 32  # letters of a value


def flat_settings(config: Mapping[str, Any], watching: Collection[str] = ()) -> dict[str, Any]:
    """The settings that a result depends on, by dotted names without ``init_args``; of a class its short name.

    Args:
        config: resolved, plain values.
        watching: short names of callbacks that only watch, and are left out.
    """
    found: dict[str, Any] = {}
    for part in _PARTS:
        _flatten(config.get(part), SEED if part == "seed_everything" else part, found, watching)
    return found


def is_left_out(path: str) -> bool:
    """Whether a setting, or what it is below, is none that results depend on."""
    parts = path.split(".")
    return parts[0] not in (*_PARTS, SEED) or not _LEFT_OUT.isdisjoint(
        {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    )


def is_same(left: Any, right: Any, path: str = "") -> bool:
    """Whether two values of a setting are the same; 1 batch is not the share 1.0, and nan is itself."""
    if path.rpartition(".")[2].startswith(_COUNTS_OR_SHARES) and type(left) is not type(right):
        return False
    return bool(left == right) or (left != left and right != right)


def short_names(paths: Iterable[str], among: Iterable[str]) -> dict[str, str]:
    """For each dotted name its end, as long as it takes to be one name among all."""
    split = {path: path.split(".") for path in {*paths, *among}}
    ends: dict[tuple[str, ...], set[str]] = {}
    for path, parts in split.items():
        for length in range(1, len(parts) + 1):
            ends.setdefault(tuple(parts[-length:]), set()).add(path)
    short = {}
    for path in paths:
        parts = split[path]
        lengths = range(1, len(parts) + 1)
        length = next((n for n in lengths if ends[tuple(parts[-n:])] == {path}), len(parts))
        short[path] = ".".join(parts[-length:])
    return short


def setting_text(value: Any) -> str:
    """A value as people write it, ``1e-3`` and ``null``; a long one is cut in the middle and told apart by a digest."""
    text = _text(value)
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:4]
    half = (_LONGEST - 6) // 2
    return f"{text[:half]}…{text[-half:]}#{digest}"


def what_differs(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each of several runs what it has otherwise than another, as ``name=value``.

    Args:
        settings: of each run, by dotted names; what one lacks is shown as a dash.
    """
    rows = settings_table({str(number): each for number, each in enumerate(settings)})
    return [[f"{name}={values[number]}" for name, values, _ in rows] for number in range(len(settings))]


def settings_table(settings: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str], str]]:
    """The settings in which runs differ: short name, the text of each run's value, and the dotted name.

    Args:
        settings: of each run, by its name.
    """
    runs = list(settings.values())
    paths = dict.fromkeys(path for each in runs for path in each)
    differing = [
        path
        for path in paths
        if any(
            (path in each) != (path in runs[0]) or not is_same(each.get(path), runs[0].get(path), path) for each in runs
        )
    ]
    names = short_names(differing, paths)
    return [
        (names[path], [setting_text(each[path]) if path in each else "–" for each in runs], path) for path in differing
    ]


def _flatten(value: Any, path: str, found: dict[str, Any], watching: Collection[str]) -> None:
    if is_left_out(path):
        return
    if path == CALLBACKS:
        for callback in value if isinstance(value, list) else [value] if value else []:
            name = _short_class(callback)
            if name not in watching:
                while f"{path}.{name}" in found:
                    name += "#"
                found[f"{path}.{name}"] = True
                for key, item in (callback.get("init_args") or {}).items():
                    _flatten(item, f"{path}.{name}.{key}", found, watching)
    elif isinstance(value, Mapping) and "class_path" in value:
        found[path] = _short_class(value)
        for below in ("init_args", "dict_kwargs"):
            for key, item in (value.get(below) or {}).items():
                _flatten(item, f"{path}.{key}", found, watching)
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            _flatten(item, f"{path}.{key}", found, watching)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            _flatten(item, f"{path}.{number}", found, watching)
    elif value not in (None, {}) or path not in _PARTS:
        found[path] = value


def _short_class(value: Mapping[str, Any]) -> str:
    return str(value["class_path"]).rpartition(".")[2]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        usual = value != value or value in (0, float("inf"), -float("inf")) or 1e-2 <= abs(value) < 1e5
        return repr(value) if usual else format(Decimal(repr(value)).normalize(), "e").replace("e+", "e")
    if isinstance(value, Mapping):
        if "class_path" in value:
            inner = ", ".join(f"{key}={_text(item)}" for key, item in (value.get("init_args") or {}).items())
            return f"{_short_class(value)}({inner})" if inner else _short_class(value)
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return " ".join(str(value).split())
