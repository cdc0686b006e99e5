"""Small integers packed as bit planes: plane p holds bit p of every row that has more than p bits."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from eigenscope.kv.lloyd_max import MAX_BITS


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
    for p, (end, held) in enumerate(zip(ends, rows, strict=True)):
        codes[..., :held, :] |= bits[..., end - held : end, :] << p
    return codes


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _check(rows: Sequence[int], count: int, data: Tensor) -> None:
    if data.dtype != torch.uint8:
        raise ValueError(f"codes and planes must be uint8, got {data.dtype}")
    ordered = all(a >= b >= 0 for a, b in itertools.pairwise(rows))
    if not 1 <= len(rows) <= MAX_BITS or not ordered or rows[0] != count:
        raise ValueError(f"rows must be 1 to {MAX_BITS} numbers, from all {count} rows downwards, got {list(rows)}")
