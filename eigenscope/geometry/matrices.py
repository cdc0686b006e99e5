"""Matrices of points on a sphere: a few of many, and random ones to compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def spread_matrices(points: Tensor, count: int) -> Tensor:
    """At most ``count`` of the matrices (..., V, D), evenly spaced over the leading dimensions, (N, V, D)."""
    matrices = points.reshape(-1, *points.shape[-2:])
    places = torch.linspace(0, len(matrices) - 1, min(len(matrices), count)).round().long()
    return matrices[places.to(points.device)]


def random_unit_points(count: int, num_points: int, dim: int, seed: int = 0) -> Tensor:
    """``count`` matrices of independent uniform points on the sphere, (count, V, D) float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(count, num_points, dim, generator=generator, dtype=torch.float64)
    return F.normalize(normals, dim=-1)
