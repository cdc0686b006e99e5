"""Snapshot of the eigenbases of several parameters at one step, and their change since."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.optim.eigenbases.factors import KroneckerFactors
from eigenscope.optim.eigenbases.rotation import Eigenbasis, Rotation, block_overlap, eigenbasis, measure_rotation

Side = tuple[str, str]
"""A parameter's name, and which of its factors: ``L`` or ``R``."""

_ENTRIES = 2**22  # of matrices in one batch: few enough that float64 copies of many wide ones do not fill the memory


class EigenbasisSnapshot(NamedTuple):
    """Eigenbases of tracked parameters after ``step`` steps of the optimizer."""

    step: int
    bases: dict[Side, Eigenbasis]


def take_snapshot(step: int, factors: Mapping[str, KroneckerFactors]) -> EigenbasisSnapshot:
    """Copies the factors of parameters, by name, and orders their eigenbases."""
    live = {
        (name, side): pair
        for name, found in factors.items()
        for side, pair in (("L", (found.L, found.Q_L)), ("R", (found.R, found.Q_R)))
    }
    bases: dict[Side, Eigenbasis] = {}
    for sides in _batches({side: factor for side, (factor, _) in live.items()}):
        batch = eigenbasis(*(torch.stack([live[side][part] for side in sides]) for part in (0, 1)))
        bases |= {side: Eigenbasis(*parts) for side, *parts in zip(sides, *batch, strict=True)}
    return EigenbasisSnapshot(step, {side: bases[side] for side in live})


def compare_snapshots(now: EigenbasisSnapshot, reference: EigenbasisSnapshot, k: int) -> dict[Side, Rotation]:
    """The :class:`~eigenscope.optim.eigenbases.rotation.Rotation` of each side that both have, on the CPU."""
    figures: list[Tensor] = []
    order: list[Side] = []
    for sides, both in _pairs(now, reference):
        figures.append(torch.stack(measure_rotation(*both, k), -1))
        order += sides
    rows = torch.cat(figures).cpu().unbind() if figures else ()  # one wait for the device
    return {side: Rotation(*row) for side, row in zip(order, rows, strict=True)}


def compare_columns(now: EigenbasisSnapshot, reference: EigenbasisSnapshot) -> dict[Side, Tensor]:
    """Of each side that both have, :func:`~eigenscope.optim.eigenbases.rotation.block_overlap` on the CPU."""
    overlaps: dict[Side, Tensor] = {}
    for sides, (new, old) in _pairs(now, reference):
        overlaps |= dict(zip(sides, block_overlap(new.vectors, old.vectors).cpu(), strict=True))
    return overlaps


def _pairs(
    now: EigenbasisSnapshot, reference: EigenbasisSnapshot
) -> Iterator[tuple[Sequence[Side], tuple[Eigenbasis, Eigenbasis]]]:
    common = {side: basis.factor for side, basis in now.bases.items() if side in reference.bases}
    for sides in _batches(common):
        yield sides, (_stacked(now.bases[side] for side in sides), _stacked(reference.bases[side] for side in sides))


def _stacked(bases: Iterable[Eigenbasis]) -> Eigenbasis:
    return Eigenbasis(*(torch.stack(parts) for parts in zip(*bases, strict=True)))


def _batches(matrices: Mapping[Side, Tensor]) -> Iterator[list[Side]]:
    """Sides with matrices of one size and device, as many at a time as are to be in memory."""
    groups: dict[tuple[int, torch.device], list[Side]] = {}
    for side, matrix in matrices.items():
        groups.setdefault((len(matrix), matrix.device), []).append(side)
    for (size, _), sides in groups.items():
        count = max(1, _ENTRIES // size**2)
        for start in range(0, len(sides), count):
            yield sides[start : start + count]
