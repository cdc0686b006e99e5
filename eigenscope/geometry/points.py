"""Random point sets on a sphere, and the effective rank of their spectra."""

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(S: Tensor) -> Tensor:
    """The exponential of the entropy of S / sum(S) (Roy and Vetterli, *The effective rank*, EUSIPCO 2007).

    Args:
        S: (..., r) singular values, >= 0, in any order and scale.

    Returns:
        (...) in the dtype of S, at least float32: between 1, for a single value, and r, for r equal ones; 0 where all
        values are zero. The gradient with respect to a zero value is taken as zero; it is infinite from the right.

    Raises:
        ValueError: S has no values or is not floating point.
    """
    if S.ndim < 1 or S.shape[-1] < 1 or not S.is_floating_point():
        raise ValueError(f"S must be real spectra (..., r) with r >= 1, got {S.dtype} of shape {tuple(S.shape)}")
    S = S.to(torch.promote_types(S.dtype, torch.float32))
    total = S.sum(-1, keepdim=True)
    p = S / torch.where(total == 0, 1, total)
    entropy = -(p * torch.where(p == 0, 1, p).log()).sum(-1)
    return torch.where(total[..., 0] == 0, 0, entropy.exp())


def spread_matrices(points: Tensor, count: int) -> Tensor:
    """At most ``count`` of the matrices (..., V, D), evenly spaced over the leading dimensions, (N, V, D)."""
    matrices = points.reshape(-1, *points.shape[-2:])
    places = torch.linspace(0, len(matrices) - 1, min(len(matrices), count), dtype=torch.float32).round().long()
    return matrices[places.to(points.device)]


def random_unit_points(count: int, num_points: int, dim: int, seed: int = 0) -> Tensor:
    """``count`` matrices of independent uniform points on the sphere, (count, V, D) float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(count, num_points, dim, generator=generator, dtype=torch.float64)
    return F.normalize(normals, dim=-1)
