"""Random numbers addressed by a key and a sample index, drawn as whole batches.

A sample's numbers depend on its key and its index alone, so they are the same whichever loader worker, rank or
batch asks for them. The generator is SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number
generators*, OOPSLA 2014), which hashes a counter and therefore needs no state between calls.
"""

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit two's complement of an unsigned constant, as torch.int64 wants it."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def stream_key(*parts: int) -> int:
    """Folds integers such as (seed, split, epoch) into the key of one stream.

    Args:
        parts: any integers; their order counts.

    Returns:
        A signed 64-bit integer. Unequal parts give unrelated keys.
    """
    key = torch.zeros((), dtype=torch.int64)
    for part in parts:
        key = _mix(key + _GAMMA + _mix(torch.tensor(_signed(part % (1 << 64))) + _GAMMA))
    return int(key)


def random_bits(key: int, indices: Tensor, count: int) -> Tensor:
    """Draws ``count`` 64-bit words for every sample.

    Args:
        key: the stream, from :func:`stream_key`.
        indices: (N,) int64, the samples.
        count: words per sample.

    Returns:
        (N, count) int64 on the device of ``indices``; row n is the SplitMix64 sequence of sample n.
    """
    starts = _mix(_mix(indices.to(torch.int64)) ^ key)
    steps = torch.arange(1, count + 1, device=indices.device) * _GAMMA
    return _mix(starts[:, None] + steps)


def uniform(key: int, indices: Tensor, count: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), at the midpoints of 2^23 equal cells.

    Arguments as in :func:`random_bits`.

    Returns:
        (N, count) float32.
    """
    return (_shift_right(random_bits(key, indices, count), 41).to(torch.float32) + 0.5) * 2.0**-23
