"""How many bytes are held: everything retained, counted once."""

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_NO_TENSORS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def held_tensors(*trees: object) -> dict[str, Tensor]:
    """Every tensor in codes, states and containers of them, under the path that leads to it, such as ``0.planes``.

    Looks into dataclasses, mappings, lists, tuples and sets. Numbers, strings, dtypes, devices and None hold none.

    Raises:
        TypeError: it meets anything else, such as a whole cache, since tensors in it would be missed.
    """
    return dict(_walk(trees, ""))


def bytes_held(*trees: object) -> int:
    """Bytes of memory that the tensors in codes, states and containers of them keep alive.

    The number of elements times the element size of each storage, once however often it is met. A view counts the
    whole storage that it keeps alive, since no less can be freed.

    Raises:
        TypeError: as :func:`held_tensors`.
    """
    storages = {}
    for tensor in held_tensors(*trees).values():
        storage = tensor.untyped_storage()
        storages[tensor.device, storage.data_ptr() or id(storage)] = storage.nbytes()
    return sum(storages.values())


def bits_per_element(elements: int, *trees: object) -> float:
    """Bits held for each of ``elements`` numbers represented; count a state once, however many codes it serves.

    Raises:
        ValueError: ``elements`` < 1.
    """
    if elements < 1:
        raise ValueError(f"elements must be at least 1, got {elements}")
    return 8 * bytes_held(*trees) / elements


def _walk(tree: object, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
        return
    children: dict[str, object] = {}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        children = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    elif isinstance(tree, Mapping):
        children = {str(name): child for name, child in tree.items()}
    elif isinstance(tree, list | tuple | set | frozenset):
        children = {str(index): child for index, child in enumerate(tree)}
    elif not isinstance(tree, _NO_TENSORS):
        raise TypeError(
            f"trees must be tensors, dataclasses, mappings, lists, tuples or sets of them, got {type(tree).__name__}"
            f"{f' at {path}' if path else ''}"
        )
    for name, child in children.items():
        yield from _walk(child, f"{path}.{name}" if path else name)
