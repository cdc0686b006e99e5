"""Norms of tokens as 8-bit logarithms: what each token is divided by before its directions are quantised."""

import torch
from torch import Tensor

_STEPS = 16  # an octave: neighbouring norms differ by 4.4 %
_MIDDLE = 128


def norm_level(centred: Tensor) -> Tensor:
    """The level (...) about which the norms of tokens (..., T, d) lie: the geometric mean of those above zero."""
    size = _root_mean_square(centred)
    tokens = size > 0
    logarithms = torch.where(tokens, size, 1).log2().sum(-1) / tokens.sum(-1).clamp_min(1)
    return torch.where(tokens.any(-1), logarithms.exp2(), 1)


def encode_norms(centred: Tensor, level: Tensor) -> Tensor:
    """Norms of tokens (..., T, d) over a level (...): (..., T) uint8, 16 an octave, from 2^−8 to 2^8 of the level."""
    size = _root_mean_square(centred / level[..., None, None])
    steps = (size.clamp_min(2.0**-60).log2() * _STEPS).round() + _MIDDLE
    return steps.clamp(0, 255).to(torch.uint8)


def decode_norms(codes: Tensor, level: Tensor) -> Tensor:
    """The norms that :func:`encode_norms` coded, (..., T, 1) in the dtype of the level."""
    steps = (codes.to(level.dtype) - _MIDDLE) / _STEPS
    return (steps.exp2() * level[..., None])[..., None]


def _root_mean_square(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=-1) / x.shape[-1] ** 0.5
    return size
