"""Files of codecs, fits and codes: safetensors with the structure as JSON in the header, which execute no code."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eigenscope.files import replace_atomically

_FORMAT = "eigenscope kv"
_VERSION = "1"
_MODULES = (
    "codec",
    "entropy_codec",
    "low_rank_int8",
    "pooled_codec",
    "score_aware_codec",
    "sensitivities",
    "transform_codec",
    "transform_state",
    "uniform_int",
)
_CLASSES = {
    kind.__name__: kind
    for module in (import_module(f"eigenscope.kv.codecs.{name}") for name in _MODULES)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind.__module__ == module.__name__ and not kind.__name__.startswith("_")
}
_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


def save_tree(path: Path, kind: str, tree: Any) -> None:
    """Saves numbers, texts, tensors, dtypes, codecs, fits and codes, in mappings, lists and tuples, atomically.

    Args:
        path: of the file.
        kind: what it holds, for messages.
        tree: what is saved. A tensor that occurs twice is saved once.

    Raises:
        TypeError: something else is in the tree.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    text = json.dumps(_plain(tree, tensors, names))
    metadata = {"format": _FORMAT, "version": _VERSION, "kind": kind, "tree": text}
    metadata["sha256"] = _checksum(text, tensors)
    with replace_atomically(Path(path)) as aside:
        save_file(tensors, aside, metadata)


def load_tree(path: Path, kind: str) -> Any:
    """What :func:`save_tree` saved, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, of another kind, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{kind}: there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    found = (metadata.get("format"), metadata.get("version"), metadata.get("kind"))
    if found != (_FORMAT, _VERSION, kind):
        raise ValueError(f"{path} must be {_FORMAT} {kind}, version {_VERSION}, got {' '.join(map(str, found))}")
    if metadata.get("sha256") != _checksum(metadata["tree"], tensors):
        raise ValueError(f"{path} is damaged: its checksum is not that of what it holds")
    return _tree(json.loads(metadata["tree"]), tensors)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(tree: Any, tensors: dict[str, Tensor], names: dict[tuple[Any, ...], str]) -> Any:
    def inside(value: Any) -> Any:
        return _plain(value, tensors, names)

    if isinstance(tree, Tensor):
        place = (tree.device, tree.data_ptr(), tree.shape, tree.stride(), tree.dtype)
        new = str(len(tensors))
        name = names.setdefault(place, new) if tree.numel() else new  # empty ones have no place
        tensors.setdefault(name, tree.detach().cpu().clone(memory_format=torch.contiguous_format))
        return {"tensor": name}
    kind = type(tree).__name__
    if _CLASSES.get(kind) is type(tree):
        fields: Any = getattr(tree, "_fields", None) or getattr(tree, "__dataclass_fields__", ())
        return {"class": kind, "fields": {name: inside(getattr(tree, name)) for name in fields}}
    if isinstance(tree, Mapping):
        return {"mapping": {str(name): inside(value) for name, value in tree.items()}}
    if isinstance(tree, tuple | list):
        return {kind: [inside(value) for value in tree]}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree)}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(
        f"a {kind} cannot be saved in a file that executes no code; known are {', '.join(sorted(_CLASSES))}"
    )


def _tree(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(plain, dict):
        return plain
    kind, value = next(iter(plain.items()))
    makers: dict[str, Callable[[Any], Any]] = {
        "tensor": lambda name: tensors[name],
        "class": lambda name: _CLASSES[name](**{key: _tree(part, tensors) for key, part in plain["fields"].items()}),
        "mapping": lambda parts: {name: _tree(part, tensors) for name, part in parts.items()},
        "tuple": lambda parts: tuple(_tree(part, tensors) for part in parts),
        "list": lambda parts: [_tree(part, tensors) for part in parts],
        "dtype": _DTYPES.__getitem__,
    }
    return makers[kind](value)
