"""Rotation of a Kronecker factor's eigenbasis: angles, factor change, and a verdict (stable, gauge, diverged)."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eigenscope.linalg import principal_angles, sort_eigenbasis, top_angle, weighted_subspace_distance
from eigenscope.linalg.eigenbases import unit_vectors

Verdict = Literal["stable", "gauge", "diverged"]

_STILL_DEG = 10.0
_UNCHANGED = 0.05  # as a fraction of the factor's norm


class Eigenbasis(NamedTuple):
    """Eigenbasis of a Kronecker factor at one step: the factor and its sorted eigenvectors.

    Attributes:
        factor: (..., n, n) symmetric.
        vectors: (..., n, n), in columns, those of the largest eigenvalue estimates first.
        values: (..., n) float64, the estimates, descending.
    """

    factor: Tensor
    vectors: Tensor
    values: Tensor


class Rotation(NamedTuple):
    """Rotation of an eigenbasis against an earlier one; every field is (...) float64, NaN if an input was not finite.

    Attributes:
        top1_deg: angle between the two leading eigenvectors, degrees in [0, 90].
        topk_deg: largest principal angle between the spans of the k leading ones, degrees in [0, 90].
        distance: :func:`eigenscope.linalg.weighted_subspace_distance`, in [0, 1].
        change: ‖A − A₀‖ / ‖A₀‖ of the factor, in Frobenius norm.
        shape_change: sine of the angle between A and A₀ as vectors of n² entries: the change that no multiple of A₀
            explains. A factor that merely decays has none.
    """

    top1_deg: Tensor
    topk_deg: Tensor
    distance: Tensor
    change: Tensor
    shape_change: Tensor


def eigenbasis(factor: Tensor, vectors: Tensor) -> Eigenbasis:
    """Orders the columns of an optimizer's basis, which has an order of its own, by diag(QᵀAQ).

    Args:
        factor: (..., n, n) symmetric; kept, not copied.
        vectors: (..., n, n), orthonormal columns in any order. A matrix with an entry that is not finite, here or in
            ``factor``, gets values of NaN.

    Raises:
        ValueError: they are not square matrices of one shape.
    """
    finite = (
        _finite(factor) & _finite(vectors) if factor.shape == vectors.shape else torch.tensor(True, dtype=torch.bool)
    )
    if finite.all():
        values, ordered = sort_eigenbasis(vectors, factor)
        return Eigenbasis(factor, ordered, values)
    values, ordered = sort_eigenbasis(_or_identity(vectors, finite), _or_identity(factor, finite))
    return Eigenbasis(factor, ordered, values.where(finite[..., None], torch.nan))


def measure_rotation(now: Eigenbasis, reference: Eigenbasis, k: int) -> Rotation:
    """Compares an eigenbasis with an earlier one of the same factor, or many with as many.

    Angles and distance are blind to signs and to the order in which the optimizer keeps its columns.

    Args:
        now: of matrices (..., n, n).
        reference: of the same shape.
        k: leading eigenvectors whose span is compared, 1 to n.

    Raises:
        ValueError: shapes differ, or k is out of range.
    """
    finite = now.values.isfinite().all(-1) & reference.values.isfinite().all(-1)
    Q, R = now.vectors, reference.vectors
    figures = (
        top_angle(Q, R).rad2deg(),
        principal_angles(Q, R, k)[..., -1].rad2deg(),
        weighted_subspace_distance(Q, R, now.values.nan_to_num(), reference.values.nan_to_num()),
        *_changes(now.factor, reference.factor),
    )
    return Rotation(*(figure.where(finite, torch.nan) for figure in figures))


def verdict(topk_deg: float, shape_change: float, distance: float) -> Verdict:
    """What a rotation means: ``stable``, ``gauge`` or ``diverged``.

    By Davis and Kahan (1970) a perturbation E of a symmetric matrix turns the span of its leading eigenvectors by at
    most sin θ ≤ ‖E‖ / gap, with gap the distance of their eigenvalues from the others. If the factor is what it was but
    for a multiple, E is small and only eigenvectors whose eigenvalues nearly coincide can have turned: the choice of a
    basis among them is a gauge, and the preconditioner is unchanged. That holds of eigenvectors. An optimizer's basis
    may turn away from an unchanged factor, by rounding or because it only iterates towards the eigenvectors, as SOAP
    does; directions of different eigenvalues then change places, which the weighted distance shows. If the factor or
    the distance has changed, the optimizer works with another preconditioner; whether data or rounding made it so is
    for a second copy at another precision to tell.

    Args:
        topk_deg: largest principal angle, degrees; up to 10 the basis is ``stable``, whatever the factor has done.
        shape_change: of the factor, see :class:`Rotation`.
        distance: of the basis, see there. A larger angle is ``gauge`` if both are at most 0.05.

    Returns:
        ``diverged`` also where a figure is not finite.
    """
    if not all(map(math.isfinite, (topk_deg, shape_change, distance))):
        return "diverged"
    if topk_deg <= _STILL_DEG:
        return "stable"
    return "gauge" if max(shape_change, distance) <= _UNCHANGED else "diverged"


def block_overlap(Q: Tensor, R: Tensor, most: int = 128) -> Tensor:
    """|QᵀR|, or of larger bases the overlap between the spans of successive columns.

    Columns are taken together in blocks of ⌈n / most⌉. The overlap of two blocks of at least b columns each is
    ‖Q_iᵀ R_j‖_F / √b: the root mean square of the cosines of their principal angles, 1 where one holds the other and 0
    where they are orthogonal. It is blind to rotations inside a block; with blocks of one column it is |⟨q_i, r_j⟩|.

    Args:
        Q: (..., n, n) orthonormal columns.
        R: same shape.
        most: rows and columns of the result at most.

    Returns:
        (..., m, m) float32 in [0, 1], m = ⌈n / ⌈n / most⌉⌉.

    Raises:
        ValueError: ``most`` is below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    n = Q.shape[-1]
    size = math.ceil(n / most)
    blocks = math.ceil(n / size)
    squares = (Q.float().mT @ R.float()).square()
    squares = torch.nn.functional.pad(squares, (0, blocks * size - n) * 2)
    sums = squares.reshape(*squares.shape[:-2], blocks, size, blocks, size).sum((-3, -1))
    columns = torch.full((blocks,), float(size), dtype=squares.dtype, device=Q.device)
    columns[-1] = n - (blocks - 1) * size
    return (sums / torch.minimum(columns[:, None], columns)).sqrt().clamp_max(1)


def _changes(A: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Relative change, and sine of the angle, without loss of digits where they are small."""
    A, reference = A.double().flatten(-2), reference.double().flatten(-2)
    largest = torch.maximum(A.abs().amax(-1, keepdim=True), reference.abs().amax(-1, keepdim=True))
    scale = largest.clamp_min(torch.finfo(largest.dtype).tiny)  # no square over- or underflows
    A, reference = A / scale, reference / scale
    norms, reference_norms = A.norm(dim=-1), reference.norm(dim=-1)
    difference = (A - reference).norm(dim=-1)
    change = torch.where(difference == 0, 0, difference / reference_norms)
    chord = (unit_vectors(A) - unit_vectors(reference)).norm(dim=-1)  # 2 sin(θ/2)
    sine = chord * (1 - chord.square() / 4).clamp_min(0).sqrt()
    return change, torch.where((norms == 0) != (reference_norms == 0), 1, sine)


def _finite(matrices: Tensor) -> Tensor:
    return matrices.isfinite().all(-1).all(-1)


def _or_identity(matrices: Tensor, finite: Tensor) -> Tensor:
    """An eigensolver refuses what is not finite."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return torch.where(finite[..., None, None], matrices, identity)
