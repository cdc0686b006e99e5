"""State of a fitted transform codec: directions of all groups in one list, and their positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import Factors, Fitted


@dataclass(frozen=True, eq=False)
class TransformState(Fitted):
    """The K directions of all groups that have bits, those with most bits first.

    Attributes:
        mean: (*groups, d) bfloat16, subtracted before coding.
        basis: (K, d) int8, directions up to their length; a coefficient is the product with one of them.
        synthesis: (K, d) int8, what a coefficient is decoded with; None where the bases are orthonormal.
        owner: (K,) int16, the flat index of the group.
        scale: (K,) bfloat16, what a coefficient is divided by before its quantiser.
        gain: (K,) bfloat16, what a level is multiplied by; None where that is ``scale``.
        rows: (8,) int32, for each p from 0 how many directions have more than p bits. On the CPU: shapes follow it.
        norm: (*groups,) bfloat16, about which the norms of tokens lie; None where tokens are not divided by theirs.
        coherence: (*groups,) bfloat16, of :class:`Sensitivity`, by which levels are stretched; None is 1 everywhere.
    """

    mean: Tensor
    basis: Tensor
    synthesis: Tensor | None
    owner: Tensor
    scale: Tensor
    gain: Tensor | None
    rows: Tensor
    norm: Tensor | None = None
    coherence: Tensor | None = None


class Bases(NamedTuple):
    """The directions of a state as one matrix a group, padded with zeros to k rows.

    Attributes:
        analysis: (groups, k, d), rows of length 1.
        synthesis: (groups, k, d), rows of length 1.
        slots: (K,) where in groups × k each direction of the state stands.
    """

    analysis: Tensor
    synthesis: Tensor
    slots: Tensor


def bases(basis: Tensor, synthesis: Tensor | None, owner: Tensor, groups: int, dtype: torch.dtype) -> Bases:
    """Opens stored directions; the tensors are those of a :class:`TransformState`."""
    owner = owner.to(torch.int64)  # as stored, a place in groups × k would wrap
    counts = torch.bincount(owner, minlength=groups)
    order = owner.argsort(stable=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=len(order))
    places = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device) - starts)
    k = int(counts.max())
    slots = owner * k + places

    def opened(rows: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(rows.to(dtype), dim=-1)
        padded = unit.new_zeros(groups * k, rows.shape[-1]).index_copy(0, slots, unit)
        return padded.reshape(groups, k, rows.shape[-1])

    analysis = opened(basis)
    if synthesis is not None:
        return Bases(analysis, opened(synthesis), slots)
    # One Newton–Schulz step towards the nearest orthonormal rows. Rounding to int8 turns a direction of 128 channels
    # by 0.6 %; the step leaves the square of that.
    analysis = 1.5 * analysis - 0.5 * (analysis @ analysis.mT) @ analysis
    return Bases(analysis, analysis, slots)


def coefficients(centred: Tensor, opened: Bases, groups: tuple[int, ...]) -> Tensor:
    """Coefficients (*batch, K, T) of tokens (*batch, *groups, T, d) along the directions of a state, in its order."""
    batch = centred.shape[: centred.ndim - 2 - len(groups)]
    flat = centred.reshape(*batch, math.prod(groups), *centred.shape[-2:])
    return (opened.analysis @ flat.mT).flatten(-3, -2).index_select(-2, opened.slots)


def block_factors(levels: Tensor, opened: Bases, groups: tuple[int, ...], mean: Tensor) -> Factors:
    """The decoded block of coefficients (*batch, K, T) along the directions of a state."""
    *batch, _, T = levels.shape
    flat, k, d = opened.synthesis.shape
    C = levels.new_zeros(*batch, flat * k, T).index_copy(-2, opened.slots, levels)
    return Factors(C.reshape(*batch, *groups, k, T).mT, opened.synthesis.reshape(*groups, k, d), mean.to(levels.dtype))


def by_width(rows: Sequence[int]) -> list[tuple[int, slice]]:
    """For each number of bits in use, the directions that have it."""
    ends = [*rows, 0]
    return [(p + 1, slice(ends[p + 1], ends[p])) for p in range(len(rows)) if ends[p + 1] < ends[p]]
