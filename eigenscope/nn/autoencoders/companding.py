"""Companding of patches: values of any magnitude as a scale and an asinh-compressed remainder, and the inverse."""

from typing import NamedTuple

import torch
from torch import Tensor

SCALES = (1e-4, 1e4)
"""Least and largest scale of a patch."""
_LARGEST = 80.0  # 1e4 sinh(80) = 2.8e38 is the last power of e below the largest float32


class Companded(NamedTuple):
    """Patches without their magnitude, and their magnitude.

    Attributes:
        values: u = asinh(x / s), (..., P), at least float32.
        log_scale: log s, (...), same dtype.
    """

    values: Tensor
    log_scale: Tensor


def compand(patches: Tensor) -> Companded:
    """Divides a patch by the median s of its |x|, limited to :data:`SCALES`, and takes u = asinh(x / s).

    Where |x| is small beside s, u is x / s; far out it is the logarithm of 2 |x| / s with the sign of x. Of an even
    number of values the median is the lower of the two in the middle. A patch that is zero on more than half of its
    places has the least scale, and what stands out of it a u of about 10.

    Args:
        patches: x, (..., P) real and finite, P >= 1; in float32 up to 1e30, beyond which x / s may overflow. Gradients
            with respect to x / s below 1e-19, those of a number above 1e19, come out as zero.

    Returns:
        u and log s, both of finite gradient.
    """
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    # Not torch.median, which CUDA refuses where deterministic algorithms are asked for.
    median = patches.abs().sort(-1).values[..., (patches.shape[-1] - 1) // 2]
    scale = median.clamp(*SCALES)
    return Companded((patches / scale[..., None]).asinh(), scale.log())


def expand(values: Tensor, log_scale: Tensor) -> Tensor:
    """The inverse of :func:`compand`, x = s sinh(u), to a relative error of about |u| units in the last place.

    The result is finite whatever u a decoder gives: u is limited to ±80, where s sinh(u) is 2.8e34 s. Its gradient is
    zero beyond; a loss belongs on u, where errors are not amplified by cosh(u).

    Args:
        values: u, (..., P); half precision is computed in float32. NaN stays NaN.
        log_scale: log s, (...), within the logarithms of :data:`SCALES`.

    Returns:
        x, (..., P), at least float32.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return log_scale.exp()[..., None] * values.clamp(-_LARGEST, _LARGEST).sinh()
