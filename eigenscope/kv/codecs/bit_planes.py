"""Lloyd–Max quantisers of standard normal numbers, and bit-plane packing of their codes."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_BITS = 8


class ScalarQuantizer(NamedTuple):
    """A quantiser of numbers of variance 1: level i stands for what lies between thresholds i − 1 and i.

    Attributes:
        levels: (2^bits,) float64 ascending, symmetric about zero.
        thresholds: (2^bits − 1,) float64, halfway between neighbouring levels.
        distortion: mean squared error on a standard normal.
    """

    levels: Tensor
    thresholds: Tensor
    distortion: float


@functools.cache
def lloyd_max(bits: int) -> ScalarQuantizer:
    """The quantiser of the least mean squared error on a standard normal (Max 1960, Lloyd 1982).

    Each threshold is halfway between two levels and each level is the mean of what falls to it. Newton's method on
    the second condition, from the levels that are optimal in the limit of many (Panter & Dite 1951), ends within a few
    steps at rounding. It is unique, since the normal's density is log-concave.

    Computed once for each number of bits and kept.

    Args:
        bits: 1 to 8.

    Raises:
        ValueError: ``bits`` out of its range.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be from 1 to {MAX_BITS}, got {bits}")
    half = 2 ** (bits - 1)
    quantiles = (torch.arange(half, dtype=torch.float64) + half + 0.5) / (2 * half)
    levels = math.sqrt(3) * torch.special.ndtri(quantiles)  # density ∝ φ^⅓, which is a normal of variance 3
    for _ in range(50):
        mean, mass, low, high = _cells(levels)
        below = _density(low) * (mean - low) / mass  # ∂mean/∂low; the derivatives of low and high by levels are ½
        above = torch.where(high.isinf(), 0, _density(high) * (high.clamp_max(1e9) - mean) / mass)
        below[0] = 0  # the lowest threshold of the upper half is zero by symmetry and does not move
        jacobian = torch.eye(half, dtype=torch.float64) - torch.diag(below + above) / 2
        jacobian -= (torch.diag(below[1:], -1) + torch.diag(above[:-1], 1)) / 2
        step = torch.linalg.solve(jacobian, mean - levels)
        levels = levels + step
        if step.abs().max() < 1e-13:
            break
    mean, mass, low, high = _cells(levels)
    levels = torch.cat([-levels.flip(0), levels])
    distortion = 1 - 2 * float((mass * mean.square()).sum())  # E[x²] − E[level²], as levels are means of their cells
    return ScalarQuantizer(levels, (levels[1:] + levels[:-1]) / 2, distortion)


def distortions() -> Tensor:
    """(9,) float64: mean squared error on a standard normal at 0, 1, …, 8 bits. Decreasing and strictly convex."""
    return torch.tensor([1.0, *(lloyd_max(bits).distortion for bits in range(1, MAX_BITS + 1))], dtype=torch.float64)


def _cells(levels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, probability, lower and upper threshold of the cells of the positive half."""
    middles = (levels[1:] + levels[:-1]) / 2
    low = torch.cat([levels.new_zeros(1), middles])
    high = torch.cat([middles, levels.new_full((1,), math.inf)])
    mass = (torch.erfc(low / math.sqrt(2)) - torch.erfc(high / math.sqrt(2))) / 2
    return (_density(low) - _density(high)) / mass, mass, low, high


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def quantize(x: Tensor, bits: int) -> Tensor:
    """The level nearest to each entry of x, of any shape: uint8 numbers from 0 to 2^bits − 1."""
    thresholds = lloyd_max(bits).thresholds.to(x.device, x.dtype)
    return torch.bucketize(x.contiguous(), thresholds, out_int32=True).to(torch.uint8)


def dequantize(codes: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The levels of codes that :func:`quantize` made."""
    levels = lloyd_max(bits).levels.to(codes.device, dtype)
    return levels.index_select(0, codes.to(torch.int32).flatten()).reshape(codes.shape)


def pack_planes(codes: Tensor, rows: Sequence[int]) -> Tensor:
    """Packs rows of unequal numbers of bits without waste, except that T is padded to whole bytes.

    The rows stand in the order of their bits, most first, so that those with a bit p are the first of them. Plane p
    follows plane p − 1 and holds one bit a token, the first token in the lowest bit of the first byte.

    Args:
        codes: (..., k, T) uint8, row i below 2^(bits of row i).
        rows: for each p from 0, how many rows have more than p bits; not increasing, at most 8 entries.

    Returns:
        (..., Σ rows, ⌈T/8⌉) uint8.

    Raises:
        ValueError: codes are not uint8, or ``rows`` is not as described.
    """
    _check(rows, codes.shape[-2], codes)
    bits = torch.cat([(codes[..., :count, :] >> p) & 1 for p, count in enumerate(rows)], -2)
    padded = torch.nn.functional.pad(bits, (0, -codes.shape[-1] % 8))
    bytewise = padded.reshape(*padded.shape[:-1], padded.shape[-1] // 8, 8)
    packed: Tensor = (bytewise << _places(codes)).sum(-1, dtype=torch.uint8)
    return packed


def unpack_planes(planes: Tensor, rows: Sequence[int], tokens: int) -> Tensor:
    """The codes (..., k, T) uint8 that :func:`pack_planes` packed, with k = rows[0] and T = ``tokens``."""
    count = rows[0] if rows else 0
    _check(rows, count, planes)
    if planes.shape[-2:] != (sum(rows), -(-tokens // 8)):
        raise ValueError(f"planes must be (..., {sum(rows)}, {-(-tokens // 8)}), got shape {tuple(planes.shape)}")
    bits = ((planes[..., None] >> _places(planes)) & 1).flatten(-2)[..., :tokens]
    codes = bits.new_zeros(*planes.shape[:-2], count, tokens)
    ends = itertools.accumulate(rows)
    for p, (end, stored) in enumerate(zip(ends, rows, strict=True)):
        codes[..., :stored, :] |= bits[..., end - stored : end, :] << p
    return codes


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _check(rows: Sequence[int], count: int, data: Tensor) -> None:
    if data.dtype != torch.uint8:
        raise ValueError(f"codes and planes must be uint8, got {data.dtype}")
    ordered = all(a >= b >= 0 for a, b in itertools.pairwise(rows))
    if not 1 <= len(rows) <= MAX_BITS or not ordered or rows[0] != count:
        raise ValueError(f"rows must be 1 to {MAX_BITS} numbers, from all {count} rows downwards, got {list(rows)}")
