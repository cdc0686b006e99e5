"""Counter-based random numbers (SplitMix64), addressed by a key and a sample index, drawn as whole batches.

A sample's numbers depend on its key and its index alone, so they are the same whichever loader worker, rank or
batch asks for them. The generator is SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number
generators*, OOPSLA 2014), which hashes a counter and therefore needs no state between calls.

A word is 64 bits and most numbers are made of half of one. Everything runs in place on as many samples at once as
the cache holds, which is what makes a keyed draw as fast as a generator's.
"""

import math
from collections.abc import Callable, Iterator
from copy import copy

import numpy as np
import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

_TOP_BIT = -(1 << 31)  # of an int32

_CACHED_WORDS = 1 << 15


def _signed(value: int) -> int:
    """The 64-bit two's complement of an unsigned number, as torch.int64 wants it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix_(words: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64 words, in place."""
    if words.device.type == "cpu":  # numpy takes 60 % of the time: it has shifts of unsigned words
        spare = np.empty(_CACHED_WORDS, np.uint64)
        unsigned = words.view(-1).numpy().view(np.uint64)
        for start in range(0, len(unsigned), _CACHED_WORDS):
            part = unsigned[start : start + _CACHED_WORDS]
            shifted = spare[: len(part)]
            for bits, factor in _ROUNDS:
                part ^= np.right_shift(part, np.uint64(bits), out=shifted)
                part *= np.uint64(factor)
            part ^= np.right_shift(part, np.uint64(31), out=shifted)
    else:
        for bits, factor in _ROUNDS:
            words.bitwise_xor_(_shift_right(words, bits)).mul_(_signed(factor))
        words.bitwise_xor_(_shift_right(words, 31))
    return words


def _shift_right(words: Tensor, bits: int) -> Tensor:
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_int(word: int) -> int:
    for bits, factor in _ROUNDS:
        word = (word ^ (word >> bits)) * factor & _WORD
    return word ^ (word >> 31)


def stream_key(*parts: int) -> int:
    """Folds integers such as (seed, split, epoch) into the key of one stream.

    Args:
        parts: any integers; their order counts.

    Returns:
        A signed 64-bit integer. Unequal parts give unrelated keys.
    """
    key = 0
    for part in parts:
        key = _mix_int((key + _GAMMA + _mix_int((part + _GAMMA) & _WORD)) & _WORD)
    return _signed(key)


def _tail_uniform(bits: Tensor) -> Tensor:
    """Numbers k 2^-31 in (0, 1] from all but the top bit of int32: fine near 0, where logarithms and poles are."""
    return _float_(bits.bitwise_or_(_TOP_BIT)).mul_(-(2.0**-31))


def _float_(bits: Tensor) -> Tensor:
    """int32 to float32 in the same memory."""
    return bits.view(torch.float32).copy_(bits)


def _outer_sum(starts: Tensor, steps: Tensor) -> Tensor:
    if starts.device.type == "cpu":  # torch's sum of int64 multiplies as well
        return torch.from_numpy(np.add.outer(starts.numpy(), steps.numpy()))
    return starts[:, None] + steps


class Streams:
    """The streams of N samples under one key, read in step: each call continues where the last one stopped.

    Args:
        key: from :func:`stream_key`.
        indices: (N,) of an integer dtype, the samples. Results are on their device.
    """

    def __init__(self, key: int, indices: Tensor) -> None:
        self._starts = _mix_(_mix_(indices.to(torch.int64, copy=True)).bitwise_xor_(key))
        self._steps: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._starts)

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self._starts.device

    def chunks(self, count: int) -> Iterator[tuple["Streams", slice]]:
        """The same streams a few samples at a time, and which they are: ``count`` numbers each stay in the cache."""
        numbers = 1 << 18 if self.device.type == "cpu" else 1 << 26  # elsewhere launches are what costs
        rows = max(1, numbers // max(1, count))
        for first in range(0, max(1, len(self)), rows):
            part = copy(self)
            part._starts = self._starts[first : first + rows]
            yield part, slice(first, first + rows)

    def bits(self, count: int) -> Tensor:
        """The next words, (N, count) int64."""
        steps = self._steps.get(count)
        if steps is None:
            steps = torch.arange(1, count + 1, device=self.device).mul_(_signed(_GAMMA))
            self._steps[count] = steps
        words = _mix_(_outer_sum(self._starts, steps))
        self._starts = self._starts + _signed(count * _GAMMA & _WORD)
        return words

    def half_words(self, count: int) -> Tensor:
        """Every 32-bit pattern equally likely, (N, count) int32."""
        return self.bits((count + 1) // 2).view(torch.int32)[:, :count]

    def uniform(self, count: int) -> Tensor:
        """U(0, 1) at the midpoints of 2^23 equal cells, (N, count) float32; 0 and 1 do not occur."""
        return _float_(self.half_words(count).bitwise_right_shift_(9)).add_(2.0**22 + 0.5).mul_(2.0**-23)

    def symmetric(self, count: int) -> Tensor:
        """U(−1, 1) at the midpoints of 2^24 equal cells, (N, count) float32; −1, 0 and 1 do not occur."""
        return _float_(self.half_words(count).bitwise_right_shift_(8)).add_(0.5).mul_(2.0**-23)

    def signs(self, count: int) -> Tensor:
        """−1 or 1, (N, count) float32."""
        return _float_(self.half_words(count).bitwise_right_shift_(31).bitwise_or_(1))

    def normal(self, count: int) -> Tensor:
        """N(0, 1) by Box and Muller, (N, count) float32; at most 6.56 in size, from 2^31 radii and 2^15 directions."""
        pairs = (count + 3) // 4 * 2
        bits = self.half_words(pairs + pairs // 2)
        values = torch.empty((len(bits), 2, pairs), dtype=torch.float32, device=bits.device)
        odd = bits[:, pairs:].bitwise_or_(0x00010001).view(torch.int16)  # two angles each, of 2^15, never an axis
        angle = odd.to(torch.float32).mul_(math.pi * 2.0**-15)
        torch.cos(angle, out=values[:, 0])
        torch.sin(angle, out=values[:, 1])
        radius = _tail_uniform(bits[:, :pairs]).log_().mul_(-2).sqrt_()
        return values.mul_(radius[:, None]).view(len(bits), 2 * pairs)[:, :count]

    def exponential(self, count: int) -> Tensor:
        """Exp(1), (N, count) float32, in [0, 21.5]."""
        return _tail_uniform(self.half_words(count)).log_().neg_()

    def laplace(self, count: int) -> Tensor:
        """Laplace of scale 1, (N, count) float32, at most 21.5 in size."""
        bits = self.half_words(count)
        return _sign_(_tail_uniform(bits.clone()).log_().neg_(), bits)

    def cauchy(self, count: int) -> Tensor:
        """The standard Cauchy distribution, (N, count) float32, at most 1.4e9 in size."""
        bits = self.half_words(count)
        return _sign_(_tail_uniform(bits.clone()).mul_(math.pi / 2).tan_().reciprocal_(), bits)


def _sign_(magnitudes: Tensor, bits: Tensor) -> Tensor:
    """Gives each float32 the sign in the top bit of its int32, in place."""
    magnitudes.view(torch.int32).bitwise_xor_(bits.bitwise_and(_TOP_BIT))
    return magnitudes


def _drawn(draw: Callable[[Streams], Tensor], key: int, indices: Tensor, count: int) -> Tensor:
    return torch.cat([draw(part) for part, _ in Streams(key, indices).chunks(count)])


def random_bits(key: int, indices: Tensor, count: int) -> Tensor:
    """Draws ``count`` 64-bit words for every sample.

    Args:
        key: the stream, from :func:`stream_key`.
        indices: (N,) int64, the samples.
        count: words per sample.

    Returns:
        (N, count) int64 on the device of ``indices``; row n is the SplitMix64 sequence of sample n.
    """
    return _drawn(lambda streams: streams.bits(count), key, indices, count)


def uniform(key: int, indices: Tensor, count: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), at the midpoints of 2^23 equal cells, from a word each.

    Arguments as in :func:`random_bits`.

    Returns:
        (N, count) float32.
    """
    return _shift_right(random_bits(key, indices, count), 41).to(torch.float32).add_(0.5).mul_(2.0**-23)
