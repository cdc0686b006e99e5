"""Random-rotation codec: TurboQuant's idea, as a peer in benchmarks (Zandieh et al. 2025)."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.kv.codecs.bit_planes import dequantize, pack_planes, quantize, unpack_planes
from eigenscope.kv.codecs.codec import Code, Codec, Factors, Fitted, check_fits


@dataclass(frozen=True, eq=False)
class RotatedCode(Code):
    """Directions of the tokens, and their norms as logarithms between ``low`` and ``low`` + 255 ``step``.

    Attributes:
        planes: (*batch, *groups, bits × d, ⌈T/8⌉) uint8.
        norms: (*batch, *groups, T) uint8.
        low: (*batch, *groups) float32.
        step: as ``low``.
    """

    planes: Tensor
    norms: Tensor
    low: Tensor
    step: Tensor


@functools.cache
def rotation(channels: int) -> Tensor:
    """A random rotation (d, d) float32, the same in every run, so that nothing of it is stored."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64)).Q.float()


@dataclass(frozen=True)
class RotatedLloydMax(Codec):
    """Each token divided by its norm and rotated at random, its channels by the Lloyd–Max quantiser of a normal.

    After the rotation the channels of any token are nearly normal and of one variance, so nothing is learned from data.
    """

    bits: int

    def encode(self, X: Tensor, fitted: Fitted) -> RotatedCode:
        check_fits(X, fitted)
        d = X.shape[-1]
        norm = X.float().norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float16).tiny)
        codes = quantize(X.float() / norm @ rotation(d).to(X.device) * math.sqrt(d), self.bits)
        logarithms = norm[..., 0].log2()
        low, high = logarithms.aminmax(dim=-1)
        step = ((high - low) / 255).clamp_min(1e-6)
        norms = ((logarithms - low[..., None]) / step[..., None]).round().to(torch.uint8)
        return RotatedCode(X.shape[-2], X.dtype, pack_planes(codes.mT, [d] * self.bits), norms, low, step)

    def factors(self, code: Code, fitted: Fitted) -> Factors:
        if not isinstance(code, RotatedCode):
            raise ValueError(f"code must be a RotatedCode, got {type(code).__name__}")
        d = fitted.channels
        codes = unpack_planes(code.planes, [d] * self.bits, code.tokens).mT
        norm = torch.exp2(code.low[..., None] + code.norms * code.step[..., None])
        C = dequantize(codes, self.bits, torch.float32) * (norm / math.sqrt(d))[..., None]
        return Factors(C, rotation(d).to(C.device).mT)
