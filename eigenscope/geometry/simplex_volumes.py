"""Simplex volumes, by orthogonalisation (Gram–Schmidt) and by the Cayley–Menger determinant."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def simplex_volumes(vertices: Tensor, ridge: float = 0.0) -> Tensor:
    """The k-volume of every simplex: the product of the |diagonal of R| over k!, where QR are its k edge vectors.

    The edges are factorised themselves and not their Gram matrix or squared distances, so the digits are not halved:
    with the last point at height h over the hull of the others the relative error in float32 is about 1e-8 / h, where
    the determinant has 1e-8 / h². Edges are scaled by a power of two first, so that no square over- or underflows.

    Args:
        vertices: (..., k + 1, D) real, the corners, 1 <= k <= D; any leading shape.
        ridge: ε >= 0, a squared length. √ε·I of k dimensions is appended to the edges, so that the result becomes
            √det(E Eᵀ + ε I) / k!, which is smooth, and at least ε^(k/2) / k!.

    Returns:
        (...) in the dtype of ``vertices``, at least float32; 0 where a simplex is exactly flat and ``ridge`` is 0;
        infinite, or 0, where the volume does not fit the dtype.

        Gradients are finite wherever the k-th power of the longest edge is. With ``ridge`` they are also right
        everywhere, and zero where all the points coincide. Without it a flat simplex lies on a kink: its gradient is
        zero where a length comes out as exactly zero, as when all points coincide, and otherwise as large as beside the
        kink, in a direction that rounding chose.

    Raises:
        ValueError: ``vertices`` is not floating point, has fewer than two points or more than D + 1, or ``ridge`` is
            negative or not finite.
    """
    _check(vertices)
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge}")
    edges, scale = _scaled_edges(vertices, math.sqrt(ridge))
    return _scaled_up(edge_volumes(edges, math.sqrt(ridge) / scale if ridge else None), scale, edges.shape[-2])


def edge_volumes(edges: Tensor, corner: Tensor | None = None) -> Tensor:
    """Volumes (...) of simplices given by their edges.

    Args:
        edges: (..., k, D) float32 or float64, from one vertex to the others; their squares must fit the dtype.
        corner: √ε of the ridge ε, of a shape that ``edges`` can be expanded from; None is none.
    """
    k = edges.shape[-2]
    if corner is not None:
        diagonal = corner * torch.eye(k, dtype=edges.dtype, device=edges.device)
        edges = torch.cat([edges, diagonal.expand(*edges.shape[:-1], k)], -1)

    # Modified Gram–Schmidt. Its Q loses orthogonality but its R is as backward stable as Householder's (Björck, *BIT*
    # 7, 1967), and only R is wanted. Every step is elementwise over all simplices at once, where torch.linalg.qr calls
    # LAPACK simplex by simplex; products and sums instead of matmul because TF32 and autocast leave them alone.
    shortest = math.sqrt(torch.finfo(edges.dtype).tiny)  # below it squares underflow and a length reads as zero
    volumes = edges.new_full((), 1 / math.factorial(k))
    remaining = list(edges.unbind(-2))
    while remaining:
        edge = remaining.pop(0)
        length = torch.linalg.vector_norm(edge, dim=-1, keepdim=True)
        volumes = volumes * length
        if remaining:
            unit = edge / length.clamp_min(shortest)
            remaining = [torch.addcmul(e, (e * unit).sum(-1, keepdim=True), unit, value=-1) for e in remaining]
    return volumes.squeeze(-1)


def cayley_menger_volumes(vertices: Tensor) -> Tensor:
    """The same volumes as V² = (−1)^(k+1) det(CM) / (2^k (k!)²), from the squared distances (Cayley–Menger).

    The reference form, for tests and benchmarks. In float32 it is noise for simplices flatter than about 1e-3. Edges
    are scaled as in :func:`simplex_volumes`.

    Args:
        vertices: (..., k + 1, D) real, 1 <= k <= D.

    Returns:
        (...) in the dtype of ``vertices``, at least float32; NaN where rounding made the square negative.

    Raises:
        ValueError: as :func:`simplex_volumes`.
    """
    _check(vertices)
    edges, scale = _scaled_edges(vertices)
    points = F.pad(edges, (0, 0, 1, 0))
    k = points.shape[-2] - 1
    distances = (points[..., :, None, :] - points[..., None, :, :]).square().sum(-1)
    border = F.pad(torch.zeros_like(distances), (1, 0, 1, 0), value=1.0)
    border[..., 0, 0] = 0
    determinant = torch.linalg.det(border + F.pad(distances, (1, 0, 1, 0)))
    squares = (-1) ** (k + 1) * determinant / (2**k * math.factorial(k) ** 2) + 0.0  # no negative zero
    return _scaled_up(squares.sqrt(), scale, k)


def power_of_two(magnitudes: Tensor) -> Tensor:
    """The power of two at or below numbers >= 0, at least the smallest normal one: dividing by it changes no digit."""
    magnitudes = magnitudes.detach().clamp_min(torch.finfo(magnitudes.dtype).tiny)
    return magnitudes / (2 * magnitudes.frexp().mantissa)


def _scaled_edges(vertices: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Edges (..., k, D) over a power of two near the longest of them or ``least``, and that, (..., 1, 1)."""
    points = vertices.to(torch.promote_types(vertices.dtype, torch.float32))
    outer = power_of_two(points.detach().abs().amax((-2, -1), keepdim=True).clamp_min(least))
    points = points / outer  # differences of the largest numbers overflow
    edges = points[..., 1:, :] - points[..., :1, :]
    inner = power_of_two(torch.maximum(edges.detach().abs().amax((-2, -1), keepdim=True), least / outer))
    return edges / inner, outer * inner


def _scaled_up(volumes: Tensor, scale: Tensor, k: int) -> Tensor:
    for _ in range(k):  # one after the other: the power may not fit where the volume does
        volumes = volumes * scale[..., 0, 0]
    return volumes


def _check(vertices: Tensor) -> None:
    if vertices.ndim < 2 or vertices.shape[-2] < 2 or not vertices.is_floating_point():
        raise ValueError(
            f"vertices must be real points (..., k + 1, D) with k >= 1, got {vertices.dtype} of shape "
            f"{tuple(vertices.shape)}"
        )
    points, dim = vertices.shape[-2:]
    if points > dim + 1:
        name = "4-simplex" if points == 5 else f"{points - 1}-simplex"
        raise ValueError(
            f"vertices must be at most D + 1 points, got {points} in D = {dim}: a {name} has no volume in fewer than "
            f"{points - 1} dimensions"
        )
