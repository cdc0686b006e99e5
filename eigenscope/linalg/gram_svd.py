"""Thin singular value decomposition (SVD) through the Gram matrix."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eigenscope.linalg.broadened import thin_svd


class GramSVD(NamedTuple):
    """The factors of ``A = U diag(S) Vh``; a factor that was not asked for is None.

    With r = min(m, n): ``U`` (..., m, r), ``S`` (..., r) descending and non-negative, ``Vh`` (..., r, n).
    """

    U: Tensor | None
    S: Tensor
    Vh: Tensor | None


def gram_svd(
    A: Tensor,
    *,
    vectors: Literal["right", "both", "none"] = "right",
    compute_dtype: torch.dtype | None = None,
) -> GramSVD:
    """Thin SVD of a batch of matrices by the symmetric eigendecomposition of their smaller Gram matrix.

    Much faster than ``torch.linalg.svd`` for many matrices with one short side. The price is that squaring the
    matrix halves the digits: a singular value below sqrt(eps) of the largest one (3e-4 of it in float32, 1.5e-8 in
    float64) is noise, and so is its vector beyond being orthogonal to the others. Autocast does not apply inside.
    Entries are scaled by the largest magnitude of their matrix first, so that no square over- or underflows, from
    subnormal entries to the largest. Signs are the solver's; see :func:`eigenscope.linalg.fix_signs`. The gradient is
    finite where singular values are equal or zero; see :func:`eigenscope.linalg.broadened.thin_svd`.

    Args:
        A: (..., m, n), real, any leading shape.
        vectors: ``"right"`` computes Vh, ``"both"`` U and Vh, ``"none"`` only S.
        compute_dtype: float32 or float64; the Gram matrix and its eigenvectors are computed in it. Default: the
            dtype of A, at least float32.

    Returns:
        GramSVD with factors in the dtype of A (float32 for half-precision A). On zero and rank-deficient input
        everything is finite, U and Vh included, whose rows and columns stay orthonormal. A singular value above the
        largest number of the dtype is infinite.

    Raises:
        ValueError: A has fewer than two dimensions, is empty, complex or integer, or an option is not one of those
            named above.
        torch.linalg.LinAlgError: an entry of A is not finite. Where entries cannot be looked at, under
            ``torch.compile``, functorch's transforms and fake tensors, the factors of such a matrix are NaN instead.
    """
    if A.ndim < 2 or 0 in A.shape[-2:] or not A.is_floating_point():
        raise ValueError(f"A must be real matrices (..., m, n) with m, n >= 1, got {A.dtype} of shape {tuple(A.shape)}")
    if vectors not in ("right", "both", "none"):
        raise ValueError(f"vectors must be 'right', 'both' or 'none', got {vectors!r}")
    out_dtype = torch.promote_types(A.dtype, torch.float32)
    compute_dtype = compute_dtype or out_dtype
    if compute_dtype not in (torch.float32, torch.float64):
        raise ValueError(f"compute_dtype must be torch.float32 or torch.float64, got {compute_dtype}")

    with torch.autocast("cpu" if A.is_meta else A.device.type, enabled=False):  # meta has no autocast
        wide = A.shape[-2] < A.shape[-1]
        tall = (A.mT if wide else A).to(torch.promote_types(out_dtype, compute_dtype))  # (..., long, short)
        svd = thin_svd(
            tall, compute_dtype, short=vectors != "none", long=vectors == "both" or (vectors == "right" and wide)
        )
        S, short, long = (None if x is None else x.to(out_dtype) for x in svd)
    assert S is not None
    U, V = (short, long) if wide else (long, short)
    return GramSVD(U if vectors == "both" else None, S, None if V is None else V.mT)


def fix_signs(vectors: Tensor) -> Tensor:
    """Turns every row so that its entry of largest magnitude is positive (the first such entry on a tie).

    An eigenvector is defined up to its sign, so a solver may return either; after this rule the vector is a function
    of the matrix wherever the eigenvalue is simple and the largest entry unique.

    Args:
        vectors: (..., r, n), one vector a row, as in the ``Vh`` of an SVD.

    Returns:
        (..., r, n), same dtype; rows of zeros and rows with a NaN are returned as they are.
    """
    if not vectors.shape[-1]:
        return vectors
    pivot = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    return torch.where(pivot < 0, -vectors, vectors)
