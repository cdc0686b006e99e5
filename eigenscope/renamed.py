"""Names of version 0.4 in configurations, command lines and checkpoints, translated to the present ones.

Every function returns a new object and leaves names that were not renamed alone. The tables below are all there is to
edit when a public name changes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = ("callbacks", "datamodules", "lightning_modules")  # once top-level, now below eigenscope

CLASSES: Mapping[str, str] = {
    "CheckpointFiles": "SafeCheckpointIO",
    "LastCheckpoint": "ResumeCheckpoint",
    "Probe": "HookPoint",
    "RandomState": "ExactResume",
    "RunCard": "RunMetadataCallback",
}
"""Short names of classes that a configuration or a checkpoint of 0.4 may hold."""

ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "CVLossSchedule": {"sectors": "point_sets"},
    "Curriculum": {"score": "monitor"},
    "EigenbasisRotation": {"frames": "references", "shadow_precision": "replica_precision"},
    "EpochTable": {"score": "monitor"},
    "Scoreboard": {"score": "monitor"},
    "SplitOptimizer": {"rest": "other"},
}
"""Arguments by the short name of their class."""

_SOAP = {"weight_decay_method": "decoupled", "nesterov": False, "correct_bias": True}
REMOVED: Mapping[str, Mapping[str, Any]] = {
    "CVLossSchedule": {"measure_simplices": 200, "loss_simplices": 64, "ema_decay": 0.9},
    "LowRankInt8": {"quantized": True},
    "REKLS": _SOAP,
    "ReconstructionGrid": {"per_label": 1, "max_labels": 16},
    "SOAP": _SOAP | {"power_iter_steps": 1},
}
"""Arguments that are gone, by class, with the value at which nothing is lost by leaving them out."""

_SCHEDULES: Mapping[str, str] = {
    name: f"eigenscope.optim.{name}" for name in ("CosineAnnealingLR", "LinearLR", "OneCycleLR", "PolynomialLR")
}  # torch has classes of these names, of which ours are supersets: a short name means ours

_OPTIONS: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(rf"(\.{holder}(?:\.init_args)?\.){old}(?=$|[.+])"), rf"\g<1>{new}")
    for holder, old, new in (
        ("optimizer", "rest", "other"),
        ("curriculum", "score", "monitor"),
        ("callbacks", "score", "monitor"),
        ("callbacks", "frames", "references"),
        ("callbacks", "shadow_precision", "replica_precision"),
        ("callbacks", "sectors", "point_sets"),
    )
)

_PARAMETERS: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(rf"(^|\.){old}(?=\.)"), rf"\g<1>{new}")
    for old, new in (("squeeze", "to_bottleneck"), ("raise_latent", "expand_latent"), ("weigh", "gate"))
)
_VAES = ("SimplexVAE", "ImplantedVAE")  # whose layers those were

_NAMES_CLASSES = ("callbacks", "class_path", "lr_scheduler")  # keys whose value may be the name of a class

Note = Callable[[str], None]


class RemovedArgumentError(ValueError):
    """An argument that is gone has a value that made a difference."""


def _ignore(note: str) -> None:
    """Says nothing of a translation."""


def class_path(name: str, note: Note = _ignore) -> str:
    """The present name of a class, short or with its module.

    A package of somebody else's that bears one of the old top-level names and has the class keeps it.

    Args:
        name: as written.
        note: is told of a new name, as ``old is now new``.
    """
    if name in _SCHEDULES:
        return _SCHEDULES[name]
    package, _, short = name.rpartition(".")
    renamed = CLASSES.get(short, short)
    if package in _PACKAGES:
        if _is_somebody_elses(package, short):
            return name
        new = f"eigenscope.{package}.{renamed}"
    elif not package or package.partition(".")[0] == "eigenscope":
        new = f"{package}.{renamed}" if package else renamed
    else:
        return name
    if new != name:
        note(f"{name} is now {new}")
    return new


def configuration(tree: Any, note: Note = _ignore) -> Any:
    """A configuration, or a part of one, in present names.

    Args:
        tree: nested dictionaries, lists and plain values, such as a YAML file holds.
        note: is told of every new name.

    Raises:
        RemovedArgumentError: an argument that is gone has a value that made a difference.
    """
    return _translated(tree, note, "")


def options(args: Sequence[str], note: Note = _ignore) -> list[str]:
    """The arguments of a command line in present names: keys of options, and classes that they are set to."""
    translated: list[str] = []
    holder = ""  # the option that the next argument is the value of
    for arg in args:
        if arg.startswith("--"):
            option, equals, value = arg.partition("=")
            new = option
            for pattern, replacement in _OPTIONS:
                new = pattern.sub(replacement, new)
            if new != option:
                note(f"{option} is now {new}")
            holder = "" if equals else new
            translated.append(new + equals + (_class_of(new, value, note) if equals else ""))
        else:
            translated.append(_class_of(holder, arg, note))
            holder = ""
    return translated


def checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of 0.4 in present names: states of callbacks, configuration, hyperparameters and parameters."""
    content = dict(content)
    if isinstance(content.get("callbacks"), Mapping):
        content["callbacks"] = {_state_key(key): _state(key, state) for key, state in content["callbacks"].items()}
    if isinstance(content.get("configuration"), Mapping):
        content["configuration"] = configuration(content["configuration"])
    given = content.get("hyper_parameters")
    if isinstance(given, Mapping):
        content["hyper_parameters"] = hyperparameters(given)
        net = given.get("net")
        if isinstance(net, Mapping) and str(net.get("class_path")).rpartition(".")[2] in _VAES:
            content["state_dict"] = {parameter(name): value for name, value in content["state_dict"].items()}
            for state in content.get("optimizer_states", ()):
                for group in state["param_groups"]:
                    if "param_names" in group:
                        group["param_names"] = [parameter(name) for name in group["param_names"]]
    for state in content.get("optimizer_states", ()):
        for group in state["param_groups"]:
            if str(group.get("name", "")).partition("/")[0] == "rest" and "optimizer" in group:
                group["name"] = "other" + group["name"].removeprefix("rest")
    return content


def hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a module that the command line built, in present names."""
    translated: dict[str, Any] = configuration(dict(given))
    if isinstance(given.get("_class_path"), str):
        translated["_class_path"] = class_path(given["_class_path"])
    return translated


def parameter(name: str) -> str:
    """The present name of a parameter of :class:`~eigenscope.nn.SimplexVAE` or of its implants."""
    for pattern, replacement in _PARAMETERS:
        name = pattern.sub(replacement, name)
    return name


def _translated(tree: Any, note: Note, key: str) -> Any:
    if isinstance(tree, Mapping):
        new = {name: _translated(value, note, str(name)) for name, value in tree.items()}
        if isinstance(new.get("class_path"), str):
            new["class_path"] = class_path(new["class_path"], note)
            if isinstance(new.get("init_args"), Mapping):
                new["init_args"] = _arguments(new["init_args"], new["class_path"].rpartition(".")[2], note)
        elif key == "curriculum":
            new = _arguments(new, "Curriculum", note)
        return new
    if isinstance(tree, list):
        return [_translated(value, note, key) for value in tree]
    return class_path(tree, note) if isinstance(tree, str) and key.rstrip("+") in _NAMES_CLASSES else tree


def _arguments(given: Mapping[str, Any], owner: str, note: Note) -> dict[str, Any]:
    new, renamed, removed = {}, ARGUMENTS.get(owner, {}), REMOVED.get(owner, {})
    for name, value in given.items():
        if name in renamed and renamed[name] not in given:
            note(f"{name} of {owner} is now {renamed[name]}")
            new[renamed[name]] = value
        elif name not in removed:
            new[name] = value
        elif value != removed[name]:
            raise RemovedArgumentError(f"{owner} has no argument {name} any more, and {value!r} was not its default")
    return new


def _class_of(option: str, value: str, note: Note) -> str:
    return class_path(value, note) if option.rstrip("+").rpartition(".")[2] in _NAMES_CLASSES else value


def _state(key: str, state: Any) -> Any:
    """The state of a callback, of which that of EigenbasisRotation had other keys."""
    if not key.startswith("EigenbasisRotation") or "frames" not in state:
        return state
    names = {"frames": "references", "shadows": "replicas", "overlap_frame": "overlap_reference"}
    state = {names.get(name, name): value for name, value in state.items()}
    return state | {"log": {names.get(name, name): value for name, value in state["log"].items()}}


def _state_key(key: str) -> str:
    """Lightning keeps the state of a callback under its class's name, with its arguments behind if it says so."""
    found = re.match(r"\w+", key)
    return key if found is None else CLASSES.get(found[0], found[0]) + key[found.end() :]


def _is_somebody_elses(package: str, name: str) -> bool:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or not spec.submodule_search_locations:
        return False
    if Path(next(iter(spec.submodule_search_locations))).resolve() == (Path(__file__).parent / package).resolve():
        return False
    try:
        return hasattr(__import__(package), name)
    except Exception:  # somebody else's code: whatever it raises, it does not have the class
        return False
