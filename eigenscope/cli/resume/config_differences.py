"""Differences between a configuration and that of a checkpoint: what a resumed run may not change."""

import dataclasses
import enum
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eigenscope.cli.errors.class_names import ABSENT, argument_annotation, argument_default, class_at
from eigenscope.cli.resume.affecting_callbacks import affecting_class_paths, affects_training, named_callbacks
from eigenscope.precision import precision_name

Config = Mapping[str, Any]

#: What a resumed run may have otherwise than its checkpoint, by reason. Everything else is a contradiction.
FREE: Mapping[str, tuple[str, ...]] = {
    "how this start was asked for": (
        "config",
        "ckpt_path",
        "weights_only",
        "warm_start",
        "warm_start_map",
        "resume_allow",
        "label",
    ),
    "how long the run is": (
        "trainer.max_epochs",
        "trainer.min_epochs",
        "trainer.max_steps",
        "trainer.min_steps",
        "trainer.max_time",
    ),
    "where it runs, at the same batch over all devices": (
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
        "data.init_args.num_workers",
    ),
    "where its files are": (
        "data.init_args.root",
        "data.init_args.cache_dir",
        "trainer.default_root_dir",
        "trainer.model_registry",
    ),
    "what is logged and shown": (
        "trainer.logger",
        "trainer.log_every_n_steps",
        "trainer.enable_checkpointing",
        "trainer.enable_progress_bar",
        "trainer.enable_model_summary",
        "trainer.enable_autolog_hparams",
        "without",
        "trainer.profiler",
    ),
    "checks that leave the training as it is": (
        "finite_guard",
        "trainer.detect_anomaly",
        "trainer.fast_dev_run",
        "trainer.num_sanity_val_steps",
    ),
}

#: Options of which 1 means one batch and 1.0 all of them.
_COUNTS_OR_SHARES = (
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
    "trainer.limit_predict_batches",
    "trainer.overfit_batches",
    "trainer.val_check_interval",
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One value that differs between two configurations.

    Attributes:
        path: dotted, such as ``model.init_args.net.init_args.width``; a callback goes by the name of its class.
        saved: the checkpoint's; ``ABSENT`` where it has none.
        now: the configuration's.
    """

    path: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: checkpoint {_shown(self.saved)}, now {_shown(self.now)}"


def contradictions(
    saved: Config, now: Config, sections: Mapping[str, type] | None = None, affecting: Collection[str] | None = None
) -> list[Difference]:
    """Everything by which ``now`` contradicts ``saved``, the configuration of the run to be resumed.

    Left out are :data:`FREE` and the callbacks that do not affect training.

    Args:
        saved: the resolved configuration in a checkpoint, plain values.
        now: the resolved configuration.
        sections: the classes of parts that name none, such as ``trainer``.
        affecting: the names of the classes that affected the checkpoint's training; None asks the classes.
    """
    callbacks = named_callbacks(saved), named_callbacks(now)
    binding = affecting_class_paths(*callbacks, affecting)
    kept = [{name: each for name, each in side.items() if each["class_path"] in binding} for side in callbacks]
    return differences(_binding(saved, kept[0]), _binding(now, kept[1]), sections=sections)


def callback_changes(saved: Config, now: Config, affecting: Collection[str] | None = None) -> str | None:
    """The callbacks that a resumed run has otherwise and may, as one line for people; None if there are none.

    Args:
        saved: the resolved configuration in a checkpoint, plain values.
        now: the resolved configuration.
        affecting: the names of the classes that affected the checkpoint's training; None asks the classes.
    """
    callbacks = named_callbacks(saved), named_callbacks(now)
    binding = affecting_class_paths(*callbacks, affecting)
    before, after = (
        {name: each for name, each in side.items() if each["class_path"] not in binding} for side in callbacks
    )
    changes = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            silent = name in after and affects_training(after[name]["class_path"]) is None
            note = " (its class does not state affects_training)" if silent else ""
            changes.append(f"{name} {'added' if name in after else 'removed'}{note}")
        elif found := differences(before[name], after[name]):
            arguments = ", ".join(difference.path.removeprefix("init_args.") for difference in found)
            changes.append(f"{name} changed ({arguments})")
    return f"Callbacks differ from the checkpoint's: {', '.join(changes)}." if changes else None


def differences(saved: Any, now: Any, path: str = "", sections: Mapping[str, type] | None = None) -> list[Difference]:
    """Every value that differs between two resolved configurations.

    A value that one of them lacks counts as what it would be by default: None, or the default of the argument of the
    class that both name. Where they name different classes, of the arguments only those are compared that both state.

    Args:
        saved: the one on the left; nested dictionaries, lists and plain values.
        now: the one on the right.
        path: dotted, where in the configuration both are.
        sections: the classes of parts that name none, by path.
    """
    return list(_walk(as_plain(saved), as_plain(now), path, (sections or {}).get(path), sections or {}))


def _walk(saved: Any, now: Any, path: str, owner: Any, sections: Mapping[str, type]) -> Iterator[Difference]:
    """Differences below a path; ``owner`` is the class whose arguments are there, if it is known."""
    if isinstance(saved, dict) and isinstance(now, dict):
        if "class_path" in saved and "class_path" in now:
            other = saved["class_path"] != now["class_path"]
            owner = None if other else class_at(now["class_path"])
            if other:
                yield Difference(_join(path, "class_path"), saved["class_path"], now["class_path"])
                saved, now = _shared_arguments(saved, now)
        for key in dict.fromkeys([*saved, *now]):
            below = _join(path, key)
            inner = owner if key == "init_args" else sections.get(below) or dataclass_of(owner, key)
            empty: Any = {} if key in ("init_args", "dict_kwargs") else as_plain(argument_default(owner, key))
            left, right = (side.get(key, empty) for side in (saved, now))
            if left is ABSENT or right is ABSENT:
                left, right = (None if right is None else left), (None if left is None else right)
            yield from _walk(left, right, below, inner, sections)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        if any(isinstance(item, dict) for item in (*saved, *now)):
            for number, (left, right) in enumerate(zip(saved, now, strict=True)):
                yield from _walk(left, right, f"{path}.{number}", owner, sections)
        elif not all(map(_equal, saved, now)):
            yield Difference(path, saved, now)
    elif not _equal(saved, now) or (path in _COUNTS_OR_SHARES and type(saved) is not type(now)):
        yield Difference(path, saved, now)


def _binding(config: Config, callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration a run may not change, with those of its callbacks that it may not."""
    free = {path for paths in FREE.values() for path in paths}
    kept: dict[str, Any] = _without(as_plain(config), free, "")
    trainer = kept.get("trainer")
    if isinstance(trainer, dict):
        trainer["precision"] = precision_name(trainer.get("precision"))
        trainer["callbacks"] = as_plain(callbacks)
    return kept


def _without(tree: Any, paths: set[str], path: str) -> Any:
    if not isinstance(tree, dict):
        return tree
    kept = {key: value for key, value in tree.items() if _join(path, key) not in paths}
    return {key: _without(value, paths, _join(path, key)) for key, value in kept.items()}


def _shared_arguments(saved: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    left, right = (side.get("init_args") or {} for side in (saved, now))
    names = [name for name in left if name in right]
    return {"init_args": {name: left[name] for name in names}}, {"init_args": {name: right[name] for name in names}}


def dataclass_of(owner: Any, name: str) -> Any:
    """The dataclass that an argument is of, whose fields a configuration gives without naming it."""
    annotation = argument_annotation(owner, name)
    parts = (annotation, *typing.get_args(annotation))
    return next((part for part in parts if dataclasses.is_dataclass(part)), None)


def as_plain(value: Any) -> Any:
    """Mappings, sequences, dataclasses, enums and paths as dictionaries, lists and words."""
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_plain(dataclasses.asdict(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) or (left != left and right != right)  # nan is itself


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"])
    return value if isinstance(value, str) and value else repr(value)
