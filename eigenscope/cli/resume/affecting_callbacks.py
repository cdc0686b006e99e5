"""Callbacks of a configuration that affect training, by the attribute ``affects_training`` of their classes.

A callback whose class says ``affects_training = True`` takes part in training: a resumed run must have it, with the
same arguments, and so do Lightning's callbacks that average weights. Any other may come, go and change; one whose class
does not say is no exception.
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

from eigenscope.adapters.lightning_averaging import is_averaging


def named_callbacks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The callbacks of a resolved configuration by the names of their classes; further ones of a name are ``Name#2``.

    Args:
        config: plain values.
    """
    given = (config.get("trainer") or {}).get("callbacks") or []
    named: dict[str, dict[str, Any]] = {}
    for callback in given if isinstance(given, list) else [given]:
        name = callback["class_path"].rpartition(".")[2]
        same = sum(other.partition("#")[0] == name for other in named)
        named[name + (f"#{same + 1}" if same else "")] = callback
    return named


def affecting_class_paths(
    saved: Mapping[str, Any], now: Mapping[str, Any], recorded: Collection[str] | None = None
) -> set[str]:
    """The class paths of all callbacks of two configurations that affect training.

    Args:
        saved: the callbacks of a checkpoint's configuration, by name.
        now: those of the configuration.
        recorded: the names of the classes that affected the checkpoint's training, as its run has recorded them; None
            asks the classes, as far as they are loaded: what a checkpoint names is not imported.
    """
    saved_paths = {callback["class_path"] for callback in saved.values()}
    now_paths = {callback["class_path"] for callback in now.values()}
    if recorded is not None:
        affected = {path for path in saved_paths if path.rpartition(".")[2] in recorded}
    else:
        affected = {path for path in saved_paths if affects_training(path)}
    return affected | {path for path in now_paths if affects_training(path)}


def affects_training(class_path: str) -> bool | None:
    """What a callback's class says of itself; None if it says nothing, or is not loaded."""
    kind = loaded_class(class_path)
    said = getattr(kind, "affects_training", None)
    if said is None and kind is not None and is_averaging(kind):
        return True
    return said if isinstance(said, bool) else None


def loaded_class(class_path: str) -> type | None:
    """The class of a class path, if its module is loaded: what a checkpoint names is not imported."""
    package, _, name = class_path.rpartition(".")
    found = getattr(sys.modules.get(package), name, None)
    return found if isinstance(found, type) else None
