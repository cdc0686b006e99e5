"""Battery container file: stacked weights as safetensors, with a manifest in the file's header."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eigenscope.files import replace_atomically
from eigenscope.nn.batteries.battery_array import BatteryArray

_FORMAT = "eigenscope batteries"
_VERSION = 1
_ARCHITECTURE: dict[str, type | tuple[type, ...]] = {
    "num_points": int,
    "dim": int,
    "patch_size": int,
    "hidden": int,
    "depth": int,
    "num_cross": int,
    "num_heads": (int, type(None)),
    "gram_precision": str,
}
_BATTERY: dict[str, type | tuple[type, ...]] = {"mixture": list, "steps": int, "scores": dict, "sha256": str}


@dataclass(frozen=True)
class BatteryEntry:
    """Manifest entry of one battery in a container.

    Attributes:
        mixture: the noise types it was trained on; none if it was not trained.
        steps: optimizer steps it was trained for.
        scores: numbers by name, such as its validation error.

    Raises:
        ValueError: the mixture is one string, which is not a tuple of names, or the steps are negative.
    """

    mixture: tuple[str, ...] = ()
    steps: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if isinstance(self.mixture, str):
            raise ValueError(f"mixture must be a tuple of names, got {self.mixture!r}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")


def save_batteries(path: Path, array: BatteryArray, entries: Sequence[BatteryEntry]) -> None:
    """Saves batteries and their manifest to one file, atomically.

    A safetensors file: any reader of that format finds the weights, named and shaped as in ``array.state_dict()``,
    and in its metadata ``manifest``, JSON: format and version, the architecture, and by battery its entry and the
    SHA-256 of its weights. One file, and not a manifest beside it, because two cannot be replaced at one instant.

    Args:
        path: of the file, ``.safetensors`` by custom; an old one is replaced.
        array: K batteries, on any device.
        entries: K, in order.

    Raises:
        ValueError: there are not as many entries as batteries.
    """
    if len(entries) != array.num_batteries:
        raise ValueError(f"entries must be as many as batteries, {array.num_batteries}, got {len(entries)}")
    weights = {name: weight.detach().cpu().contiguous() for name, weight in array.state_dict().items()}
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "architecture": array.architecture,
        "batteries": [
            {
                "mixture": list(entry.mixture),
                "steps": entry.steps,
                "scores": {name: float(score) for name, score in entry.scores.items()},
                "sha256": _checksum(weights, row),
            }
            for row, entry in enumerate(entries)
        ],
    }
    text = json.dumps(manifest)
    with replace_atomically(path) as aside:
        save_file(weights, aside, {"manifest": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def load_batteries(path: Path, ids: Sequence[int] | None = None) -> tuple[BatteryArray, tuple[BatteryEntry, ...]]:
    """Reads batteries that :func:`save_batteries` wrote, the same to the bit, on the CPU. No code is executed.

    Args:
        path: of the file.
        ids: which, in this order; only their rows are read. None is all of them.

    Raises:
        ValueError: the file is not there, truncated, altered or of another format; its weights do not fit its
            manifest; or a battery is not in it. The message names the file and what is wrong.
    """
    if not path.is_file():
        raise ValueError(f"there is no battery container {path}")
    try:
        with safe_open(path, framework="pt") as file:
            manifest = _manifest(file.metadata() or {})
            entries = manifest["batteries"]
            rows = range(len(entries)) if ids is None else ids
            for row in rows:
                if not 0 <= row < len(entries):
                    raise ValueError(f"there is no battery {row}; there are 0 to {len(entries) - 1}")
            weights = {name: _read(file.get_slice(name), name, len(entries), ids) for name in file.keys()}  # noqa: SIM118
        array = BatteryArray.from_weights(manifest["architecture"], weights)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"battery container {path} cannot be read: {error}") from error
    for place, row in enumerate(rows):
        if _checksum(weights, place) != entries[row]["sha256"]:
            raise ValueError(f"battery container {path} was altered: the weights of battery {row} miss their checksum")
    described = [entries[row] for row in rows]
    return array, tuple(BatteryEntry(tuple(e["mixture"]), e["steps"], e["scores"]) for e in described)


def _read(stack: Any, name: str, count: int, ids: Sequence[int] | None) -> Tensor:
    """Rows of a stack of weights, in memory of their own: those of the file could change after they were checked."""
    shape = stack.get_shape()
    if shape[:1] != [count]:
        raise ValueError(f"weight {name} is {tuple(shape)} and the manifest knows {count} batteries")
    if ids is None:
        return torch.clone(stack[:])
    return torch.cat([stack[row : row + 1] for row in ids] or [stack[:0]])


def _checksum(weights: Mapping[str, Tensor], row: int) -> str:
    """SHA-256 of a battery's weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name][row].contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.view(torch.uint8).numpy())
    return digest.hexdigest()


def _manifest(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The manifest, each of its fields of the type it should be of."""
    text = metadata.get("manifest")
    if text is None:
        raise ValueError("it has no manifest")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("sha256"):
        raise ValueError("it was altered: the manifest misses its checksum")
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"its manifest is not one of {_FORMAT}")
    if manifest.get("version") != _VERSION:
        raise ValueError(f"its format version is {manifest.get('version')!r}; this program reads version {_VERSION}")
    architecture, batteries = manifest.get("architecture"), manifest.get("batteries")
    if not isinstance(architecture, dict) or not isinstance(batteries, list) or not batteries:
        raise ValueError("its manifest lacks an architecture or batteries")
    _fields(architecture, _ARCHITECTURE, "architecture")
    for row, battery in enumerate(batteries):
        _fields(battery, _BATTERY, f"batteries[{row}]")
    return manifest


def _fields(given: Any, kinds: Mapping[str, type | tuple[type, ...]], place: str) -> None:
    if not isinstance(given, dict) or given.keys() != kinds.keys():
        raise ValueError(f"{place} in its manifest must have {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(given[name], kind):
            raise ValueError(f"{place}.{name} in its manifest is {given[name]!r}")
