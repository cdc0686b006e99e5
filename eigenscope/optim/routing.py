"""Parameter routing: which optimizer a parameter is assigned to, and why."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from eigenscope.text import text_table

MATRIX = "matrix"
"""The reason for which a parameter goes to the optimizer of matrices."""


class Route(NamedTuple):
    """The optimizer that a parameter is assigned to, and the reason.

    Attributes:
        name: the parameter's.
        shape: the parameter's.
        optimizer: class name of the optimizer that it goes to.
        reason: why there.
    """

    name: str
    shape: tuple[int, ...]
    optimizer: str
    reason: str


@runtime_checkable
class Routed(Protocol):
    """An optimizer that sends parameters to others."""

    routes: tuple[Route, ...]


def reasons_against(
    parameters: Mapping[str, Tensor], exclude: Sequence[str], max_side: int | None
) -> dict[str, str | None]:
    """Why each parameter is not a hidden matrix; None for one that is.

    Args:
        parameters: by name.
        exclude: patterns of names that are not, such as ``"head.*"``; ``*`` stands for dots too.
        max_side: the longest side that a matrix may have; None is any.
    """

    def reason(name: str, parameter: Tensor) -> str | None:
        if parameter.ndim != 2:
            return f"{parameter.ndim}-D"
        if not parameter.is_floating_point():
            return str(parameter.dtype).removeprefix("torch.")
        for pattern in exclude:
            if fnmatchcase(name, pattern):
                return f"excluded by {pattern}"
        bias = parameters.get(name.removesuffix("weight") + "bias") if name.endswith("weight") else None
        if bias is not None and bias.shape == parameter.shape:  # as of norms stacked over several networks
            return "gains, shaped as their bias"
        if max_side is not None and max(parameter.shape) > max_side:
            return f"a side over {max_side}"
        return None

    return {name: reason(name, parameter) for name, parameter in parameters.items()}


def routing_table(routes: Iterable[Route]) -> str:
    """Aligned text, a line for all parameters that differ in the numbers of their names alone.

    Numbers that vary within a line are written as ranges: ``blocks.{0-11}.attention.qkv.weight``. Vectors, the biases
    and gains, share a line. The matrices come first.

    Args:
        routes: of all parameters.
    """
    by_optimizer: dict[str, dict[tuple[object, ...], list[Route]]] = {}
    for route in sorted(routes, key=lambda route: route.reason != MATRIX):
        kind: tuple[object, ...] = (re.sub(r"\d+", "#", route.name), route.shape) if len(route.shape) > 1 else ()
        by_optimizer.setdefault(route.optimizer, {}).setdefault((*kind, route.reason), []).append(route)
    rows: list[tuple[str, ...]] = []
    for optimizer, kinds in by_optimizer.items():
        rows.append((optimizer, "", *_sums([route for alike in kinds.values() for route in alike]), ""))
        for kind, alike in kinds.items():
            name, shape = ("biases, gains", "") if len(kind) == 1 else (_joint_name(alike), _times(alike[0].shape))
            rows.append((f"  {name}", shape, *_sums(alike), alike[0].reason))
    table = text_table(("parameters", "shape", "count", "numbers", "why"), rows)
    return "\n".join(line.rstrip() for line in table.splitlines())


def _sums(routes: Sequence[Route]) -> tuple[str, str]:
    return f"{len(routes):,}", f"{sum(prod(route.shape) for route in routes):,}"


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _joint_name(routes: Sequence[Route]) -> str:
    """One name for several that are equal but for their numbers."""
    pieces = [re.split(r"(\d+)", route.name) for route in routes]
    return "".join(
        places[0] if len(set(places)) == 1 else _ranges(sorted({int(place) for place in places}))
        for places in zip(*pieces, strict=True)
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Braces around runs: ``{0-2,5}``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"
