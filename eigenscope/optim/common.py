"""Shared optimizer utilities: named parameter groups, matmul precision as an argument, state in its saved dtype."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer


def named_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    """The groups that an optimizer is given, new dictionaries with lists of pairs; one where it is given pairs.

    Raises:
        ValueError: a parameter has no name.
    """
    entries = list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    for entry in chain.from_iterable(group["params"] for group in groups):
        if not (isinstance(entry, tuple) and isinstance(entry[0], str)):
            raise ValueError(
                f"params must be pairs (name, parameter), as module.named_parameters() gives them, got {type(entry)}"
            )
    return groups


def params_by_name(groups: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """All parameters of groups.

    Raises:
        ValueError: two have one name.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in chain.from_iterable(group["params"] for group in groups):
        if name in named:
            raise ValueError(f"params must have names of their own, got {name} twice")
        named[name] = parameter
    return named


def filter_groups(groups: Sequence[dict[str, Any]], wanted: Callable[[str], bool]) -> list[Any]:
    """The groups with the wanted parameters; the pairs themselves if there is one group without options.

    Args:
        groups: as :func:`named_groups` gives them.
        wanted: by name.
    """
    chosen = [{**group, "params": [pair for pair in group["params"] if wanted(pair[0])]} for group in groups]
    chosen = [group for group in chosen if group["params"]]
    bare = len(groups) == 1 and set(groups[0]) == {"params"}
    return list(chosen[0]["params"]) if bare and chosen else chosen


MatmulPrecision = Literal["highest", "high", "medium"]
"""As of ``torch.set_float32_matmul_precision``."""


def check_precision(name: str, precision: str) -> None:
    """Checks a matmul precision, which torch would only do at the first product.

    Raises:
        ValueError: it is none of :data:`MatmulPrecision`.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(f"{name} must be one of {get_args(MatmulPrecision)}, got {precision!r}")


@contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """A context in which float32 products have a precision, and after which they have the one they had before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_saved_dtypes(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Gives each tensor of a state just loaded the dtype, and the bits, that it was saved with.

    torch casts floating-point state to the dtype of its parameter while loading, which rounds the float32 factors and
    moments of a bfloat16 weight.

    Args:
        optimizer: after its ``load_state_dict(state_dict)``; changed in place.
        state_dict: as given there.
    """
    saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(saved_ids, parameters, strict=True):
        for key, saved in state_dict["state"].get(index, {}).items():
            loaded = optimizer.state[parameter][key]
            if isinstance(saved, torch.Tensor) and loaded.dtype != saved.dtype:
                optimizer.state[parameter][key] = saved.to(loaded.device, copy=True)
