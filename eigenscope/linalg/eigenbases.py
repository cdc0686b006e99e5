"""Principal angles and weighted distances between two orthonormal eigenbases."""

import torch
from torch import Tensor

from eigenscope.linalg.finite import has_values, refuse_non_finite


def principal_angles(Q: Tensor, R: Tensor, k: int | None = None) -> Tensor:
    """Principal angles between the spans of the k leading columns of two bases.

    The cosines are the singular values of QᵀR, the sines those of the part of R outside span(Q) (Björck & Golub 1973).
    An angle is taken from both by atan2: accurate near zero, where the cosine says nothing, and near π/2, where the
    sine says nothing (Knyazev & Argentati 2002). The columns are orthonormalised in float64 first, so that bases
    stored in float32 may have angles down to about 1e-7, the rounding of their entries; identical spans have angles
    of about 1e-16, not always exactly zero.

    Args:
        Q: (..., n, m) floating, its columns in the order of importance and linearly independent.
        R: Same shape as Q.
        k: How many leading columns span the subspaces, 1 to min(n, m). Default: all m.

    Returns:
        (..., k) float64, radians in [0, π/2], ascending. Symmetric in Q and R up to rounding. Where columns are
        dependent their span is filled up to k dimensions in an arbitrary way, and the angles are those of that.

    Raises:
        ValueError: Q and R are not real matrices of one shape, or k is out of its range.
        torch.linalg.LinAlgError: an entry of the columns is not finite.
    """
    _check_bases(Q, R)
    k = Q.shape[-1] if k is None else k
    if not 1 <= k <= min(Q.shape[-2:]):
        raise ValueError(f"k must be from 1 to the {min(Q.shape[-2:])} columns that can be independent, got {k}")
    Q, R = (basis[..., :k].double() for basis in (Q, R))
    for name, basis in (("Q", Q), ("R", R)):
        if has_values(basis):
            refuse_non_finite(name, basis)
    Q, R = (torch.linalg.qr(basis).Q for basis in (Q, R))
    overlap = Q.mT @ R
    cosines = torch.linalg.svdvals(overlap)  # descending: the smallest angle first
    sines = torch.linalg.svdvals(R - Q @ overlap).flip(-1)
    return torch.atan2(sines, cosines)


def top_angle(Q: Tensor, R: Tensor) -> Tensor:
    """The angle between the first columns of two bases, whatever their signs.

    Args:
        Q: (..., n, m) floating.
        R: Same shape as Q.

    Returns:
        (...) float64, radians in [0, π/2]; see :func:`principal_angles`.

    Raises:
        ValueError: Q and R are not real matrices of one shape.
    """
    return principal_angles(Q, R, 1)[..., 0]


def sort_eigenbasis(Q: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Orders the columns of a basis by what a symmetric matrix does along them, largest first.

    The values are the Rayleigh quotients diag(QᵀAQ), which are A's eigenvalues where Q's columns are its eigenvectors.
    They are computed in float64, since those far below the largest are lost in float32 products, let alone TF32.

    Args:
        Q: (..., n, n) floating, orthonormal columns in any order.
        A: (..., n, n) floating, symmetric, on the device of Q.

    Returns:
        Values (..., n) float64, descending; and Q, in its own dtype, with its columns in that order. Equal values keep
        the order of their columns. Where an entry is not finite the values are NaN, or infinite.

    Raises:
        ValueError: Q and A are not real matrices of one shape, or not square.
    """
    if Q.shape != A.shape or Q.ndim < 2 or Q.shape[-2] != Q.shape[-1] or not _are_real(Q, A):
        raise ValueError(f"Q and A must be real square matrices of one shape, got {_described(Q)} and {_described(A)}")
    exact = Q.double()
    quotients = (exact * (A.double() @ exact)).sum(-2)
    values, order = quotients.sort(dim=-1, descending=True, stable=True)
    return values, Q.take_along_dim(order[..., None, :], -1)


def weighted_subspace_distance(Q: Tensor, R: Tensor, q_values: Tensor, r_values: Tensor) -> Tensor:
    """How far two eigenbases are turned against each other, each direction counting by its eigenvalue.

    With the columns of each basis in the order of its own values, largest first, and common weights W, the distance is
    ‖Q W Qᵀ − R W Rᵀ‖_F / (√2 ‖W‖_F). W is the mean of the two descending profiles of values, each divided by its norm.
    Between matrices rather than vectors, it is blind to signs, to the order in which columns are stored and to
    rotations among columns of equal weight; the common weights make it blind to a change of the values alone. It is
    zero where all values are equal, and 1 where all weight sits on subspaces that are orthogonal to each other. For
    small rotations it is proportional to their angle: for a rotation by θ in the plane of two columns with weights a
    and b it is |a − b| |sin θ| / ‖W‖_F. Columns orthonormal to within δ, as float32 bases are to about 1e-6, make
    errors of that size.

    Args:
        Q: (..., n, m) floating, orthonormal columns.
        R: Same shape as Q.
        q_values: (..., m) floating, the eigenvalues of the columns of Q. Negative ones, which rounding makes, count as
            zero.
        r_values: (..., m) likewise, those of R.

    Returns:
        (...) float64 in [0, 1]; 0 where all values of both bases are zero; NaN where an entry is not finite.

    Raises:
        ValueError: Q and R are not real matrices of one shape, or the values are not real vectors of theirs.
    """
    _check_bases(Q, R)
    for name, values in (("q_values", q_values), ("r_values", r_values)):
        if values.shape != Q.shape[:-2] + Q.shape[-1:] or not _are_real(values):
            raise ValueError(f"{name} must be real, one value a column of {_described(Q)}, got {_described(values)}")
    Q, q_profile = _ordered(Q, q_values)
    R, r_profile = _ordered(R, r_values)
    weights = unit_vectors(q_profile + r_profile)[..., None, :]
    # The difference itself, not 2‖W‖² minus twice an inner product: that would lose half the digits of a small angle.
    difference = (Q * weights) @ Q.mT - (R * weights) @ R.mT
    distance: Tensor = torch.linalg.matrix_norm(difference) / 2**0.5
    return distance.clamp_max(1).where(distance.isfinite(), torch.nan)


def _ordered(Q: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in the order of their values, largest first, and the values of norm 1; both in float64."""
    values, order = values.double().clamp_min(0).sort(dim=-1, descending=True, stable=True)
    return Q.double().take_along_dim(order[..., None, :], -1), unit_vectors(values)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors (..., n) of any magnitude divided by their norm; zero vectors stay."""
    if vectors.shape[-1]:  # so that no square over- or underflows
        vectors = vectors / vectors.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, 1)


def _check_bases(Q: Tensor, R: Tensor) -> None:
    if Q.shape != R.shape or Q.ndim < 2 or not _are_real(Q, R):
        raise ValueError(f"Q and R must be real matrices of one shape, got {_described(Q)} and {_described(R)}")


def _are_real(*tensors: Tensor) -> bool:
    return all(x.is_floating_point() for x in tensors)


def _described(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}"
