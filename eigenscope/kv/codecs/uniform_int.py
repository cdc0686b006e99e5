"""Uniform integer quantisation with scale and offset: the baseline without a transform."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eigenscope.kv.codecs.bit_planes import MAX_BITS, pack_planes, unpack_planes
from eigenscope.kv.codecs.codec import (
    Code,
    Codec,
    Factors,
    Fitted,
    check_fits,
    check_whole,
    computed_in,
    no_grad_no_autocast,
)


@dataclass(frozen=True, eq=False)
class UniformCode(Code):
    """X̂ = low + scale × integer, the last two for stretches of channels of a token, or of tokens of a channel.

    Attributes:
        planes: (*batch, *groups, bits × d, ⌈T/8⌉) uint8, bit planes of the integers.
        low: (*batch, *groups, T, stretches) or (*batch, *groups, stretches, d), the least entry, in the dtype of X.
        scale: as ``low``.
    """

    planes: Tensor
    low: Tensor
    scale: Tensor


@dataclass(frozen=True)
class UniformInt(Codec):
    """Rounds each entry to one of 2^bits values evenly spaced between the least and the largest of its stretch.

    KIVI (Liu et al. 2024) takes stretches of a channel over tokens for keys, whose channels differ in size, and
    stretches of a token over channels for values. Each stretch holds two numbers in the dtype of X.

    Args:
        bits: 1 to 8.
        axis: ``"token"``: stretches of the channels of one token; ``"channel"``: of the tokens of one channel.
        stretch: entries of a stretch, the last one may be shorter; None: the whole token, or channel of a block.

    Raises:
        ValueError: an option is not one of those named above.
    """

    bits: int = 4
    axis: Literal["token", "channel"] = "token"
    stretch: int | None = None

    def __post_init__(self) -> None:
        check_whole(bits=self.bits, stretch=self.stretch)
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be from 1 to {MAX_BITS}, got {self.bits}")
        if self.axis not in ("token", "channel"):
            raise ValueError(f"axis must be 'token' or 'channel', got {self.axis!r}")
        if self.stretch is not None and self.stretch < 1:
            raise ValueError(f"stretch must be at least 1, got {self.stretch}")

    @no_grad_no_autocast
    def encode(self, X: Tensor, fitted: Fitted) -> UniformCode:  # noqa: D102
        check_fits(X, fitted)
        dim = -1 if self.axis == "token" else -2
        length = X.shape[dim]
        size = min(self.stretch or length, length)
        # The last stretch is filled with its own last entry, which changes neither its least nor its largest.
        index = torch.arange(-(-length // size) * size, device=X.device).clamp_max(length - 1)
        filled = X.index_select(dim, index)
        at = X.ndim + dim
        stretches = filled.reshape(*X.shape[:at], -1, size, *X.shape[at + 1 :])
        low, high = (extreme.to(computed_in(X.dtype)) for extreme in stretches.aminmax(dim=at + 1))
        largest = torch.finfo(X.dtype).max
        scale = (high / (2**self.bits - 1) - low / (2**self.bits - 1)).clamp_max(largest).to(X.dtype)
        low = low.to(X.dtype)
        offset, step = (self._spread(x, dim, length, size) for x in (low, scale))
        codes = (X.to(step.dtype) - offset) / torch.where(step > 0, step, 1)
        codes = codes.round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        planes = pack_planes(codes.mT, [X.shape[-1]] * self.bits)
        return UniformCode(X.shape[-2], X.dtype, planes, low.contiguous(), scale.contiguous())

    @no_grad_no_autocast
    def factors(self, code: Code, fitted: Fitted) -> Factors:  # noqa: D102
        if not isinstance(code, UniformCode):
            raise ValueError(f"code must be a UniformCode, got {type(code).__name__}")
        codes = unpack_planes(code.planes, [fitted.channels] * self.bits, code.tokens).mT
        dim = -1 if self.axis == "token" else -2
        length = codes.shape[dim]
        size = min(self.stretch or length, length)
        offset, step = (self._spread(x, dim, length, size) for x in (code.low, code.scale))
        return Factors(offset + step * codes)

    def _spread(self, values: Tensor, dim: int, length: int, size: int) -> Tensor:
        """Numbers of the stretches, one for each entry."""
        return values.to(computed_in(values.dtype)).repeat_interleave(size, dim).narrow(dim, 0, length)
