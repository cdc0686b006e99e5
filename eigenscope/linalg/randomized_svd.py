"""Randomised SVD: leading singular triplets, exact, by subspace iteration, or by the textbook sketch."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from eigenscope.linalg.threaded import eigh

Method = Literal["auto", "gram", "subspace", "reference"]
_SEED = 0  # of the draws where the caller passes no generator
_SAFE = (1e-9, 1e9)  # Frobenius norms whose squares and fourth powers keep clear of float32's ends, small parts too


class TruncatedSVD(NamedTuple):
    """The k leading triplets of a matrix; ``U diag(S) Vh`` is its approximation of rank k.

    ``U`` (..., m, k) and ``Vh`` (..., k, n) are orthonormal, ``S`` (..., k) descending and non-negative.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


@torch.no_grad()
def randomized_svd(
    M: Tensor,
    rank: int,
    *,
    oversampling: int = 5,
    power_iterations: int = 2,
    generator: torch.Generator | None = None,
    method: Method = "auto",
) -> TruncatedSVD:
    """Leading ``rank`` singular triplets of every matrix of a batch; no loop over matrices, no gradient.

    With m >= n (wide matrices are transposed), G = MᵀM, l = min(rank + oversampling, n), q = ``power_iterations`` and
    Ω a Gaussian (n, l) for every matrix:

    - ``"gram"``: eigenvectors of G. Optimal, and nothing is drawn.
    - ``"subspace"``: q + 1 products of G with Ω, the columns made orthonormal after each, then the Ritz vectors of G in
      their span. One half step more than ``"reference"`` and with the best approximation over that span, so that in
      exact arithmetic its error is at most the reference's for the same draws. Where n is above 4 (q + 1) l G is not
      formed, and the half step is the reference's.
    - ``"reference"``: the randomised SVD of Halko, Martinsson and Tropp (SIAM Review 53, 2011) without
      re-orthogonalisation: Q from the QR of (MMᵀ)^q M Ω, an SVD of QᵀM, Q times its left vectors. In float32 a
      direction below eps^(1 / (2q + 1)) of the top, 0.04 at q = 2, is lost, and more iterations lose more.
    - ``"auto"``: ``"subspace"`` where 2 l <= n, ``"gram"`` otherwise.

    At q = 0 the expected Frobenius error of the reference is at most (1 + rank / (oversampling − 1))^½ times the
    optimum, the root of the sum of the squared singular values left out (their theorem 10.5; its proof covers the best
    approximation of that rank in the span). Each iteration moves the factor towards 1.

    Both other methods square the singular values. That is harmless down to sqrt(eps) of the largest, 3e-4 in float32
    and 1.5e-8 in float64: what is smaller is mixed with noise of that size, orthonormal all the same, and the
    approximation may be worse than the optimum by about sqrt(eps) times the largest. Where that matters pass float64.

    Args:
        M: (..., m, n) real, finite, any leading shape. Its scale does not matter.
        rank: k, from 1 to min(m, n).
        oversampling: columns drawn beyond ``rank``, at least 0.
        power_iterations: q, at least 0.
        generator: source of Ω, on any device. None draws from a generator of seed 0 made for the call, so that equal
            calls give equal results. The global random state is never used.
        method: one of those above.

    Returns:
        TruncatedSVD in the dtype of M, float32 for half precision. Signs are the solver's; see
        :func:`eigenscope.linalg.fix_signs`. Zero and rank-deficient input gives finite, orthonormal factors.

    Raises:
        ValueError: M has fewer than two dimensions, is empty, complex, integer or not finite, or another argument is
            outside the range named above.
    """
    if M.ndim < 2 or 0 in M.shape[-2:] or not M.is_floating_point():
        raise ValueError(f"M must be real matrices (..., m, n) with m, n >= 1, got {M.dtype} of shape {tuple(M.shape)}")
    short = min(M.shape[-2:])
    if not 1 <= rank <= short:
        raise ValueError(f"rank must be from 1 to min(m, n) = {short}, got {rank}")
    for name, value in (("oversampling", oversampling), ("power_iterations", power_iterations)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if method not in get_args(Method):
        raise ValueError(f"method must be 'auto', 'gram', 'subspace' or 'reference', got {method!r}")
    columns = min(rank + oversampling, short)
    if method == "auto":
        method = "subspace" if 2 * columns <= short else "gram"

    with torch.autocast(M.device.type, enabled=False):
        wide = M.shape[-2] < M.shape[-1]
        tall = (M.mT if wide else M).to(torch.promote_types(M.dtype, torch.float32))
        tall, norm, scale = _safely_scaled(tall)
        if method == "gram":
            left, S, right = _finished(tall, eigh(tall.mT @ tall)[1][..., -rank:].flip(-1))
        else:
            draws = _gaussian((*tall.shape[:-2], short, columns), tall, generator)
            solve = _subspace if method == "subspace" else _reference
            left, S, right = solve(tall, draws, norm, rank, power_iterations)
        S = S if scale is None else S * scale
        return TruncatedSVD(right, S, left.mT) if wide else TruncatedSVD(left, S, right.mT)


def _safely_scaled(M: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """M, its Frobenius norms (..., 1, 1), and what S must be multiplied by where M had to be divided by it."""
    norm = torch.linalg.vector_norm(M, dim=(-2, -1), keepdim=True)
    if bool(((norm > _SAFE[0]) & (norm < _SAFE[1])).all()):
        return M, norm, None  # as a rule: dividing costs as much as a product with Ω
    largest = M.abs().amax((-2, -1), keepdim=True)
    if not bool(largest.isfinite().all()):
        raise ValueError("M must be finite, got NaN or infinity")
    scale = torch.where(largest > 0, largest, 1)
    M = M / scale
    norm = torch.linalg.vector_norm(M, dim=(-2, -1), keepdim=True)
    return M, torch.where(norm > 0, norm, 1), scale[..., 0]


def _gaussian(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        generator = torch.Generator(like.device).manual_seed(_SEED)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def _reference(M: Tensor, draws: Tensor, norm: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    Y = M @ draws
    for _ in range(iterations):
        Y = M @ (M.mT @ Y / norm.square())  # the span is the same; without it Y overflows
    Q = torch.linalg.qr(Y).Q
    W, S, Vh = torch.linalg.svd(Q.mT @ M, full_matrices=False)
    return Q @ W[..., :rank], S[..., :rank], Vh[..., :rank, :].mT


def _subspace(M: Tensor, draws: Tensor, norm: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    Q = draws
    if M.shape[-1] <= 4 * (iterations + 1) * Q.shape[-1]:  # twice the multiplications, at twice the speed
        gram = M.mT @ M
        for _ in range(iterations + 1):
            Q = _orthonormal(gram @ Q)
        W = eigh(Q.mT @ (gram @ Q))[1]
        return _finished(M, Q @ W[..., -rank:].flip(-1))
    for _ in range(iterations):
        Q = _orthonormal(M.mT @ (M @ Q))
    C = M.mT @ _orthonormal(M @ Q)
    W = eigh(C.mT @ C)[1]
    return _finished(M, _orthonormal(C @ W[..., -rank:].flip(-1)))


def _orthonormal(Z: Tensor) -> Tensor:
    """An orthonormal basis of the columns, of which dependent ones may come out shorter than one.

    Cholesky QR of float32 in float64 keeps all directions that float32 can hold, in matrix products, which use
    threads well; LAPACK's QR of small matrices does not. The shift keeps the Gram matrix positive (Fukaya et al.,
    *Shifted Cholesky QR*, SIAM J. Sci. Comput. 42, 2020).
    """
    if Z.dtype == torch.float64:
        Q: Tensor = torch.linalg.qr(Z).Q
        return Q
    Z = Z.double()
    inner = Z.mT @ Z
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    diagonal += 1e-13 * diagonal.sum(-1, keepdim=True) + 1e-300
    factor = torch.linalg.cholesky_ex(inner).L
    Q = torch.linalg.solve_triangular(factor.mT, Z, upper=True, left=False).float()
    return Q


def _finished(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of M restricted to the span of V (..., n, k), whose columns are Ritz vectors in descending order."""
    polished, fine = _polished(V)
    images = M @ polished
    S = images.square().sum(-2).sqrt()
    U, fine_too = _polished(images / S[..., None, :])
    if fine and fine_too and bool((S[..., 1:] <= S[..., :-1]).all()):
        return U, S, polished
    # Values that are zero, noise or equal: slower, and orthonormal whatever comes.
    V = torch.linalg.qr(V).Q
    Q, R = torch.linalg.qr(M @ V)
    left, S, right = torch.linalg.svd(R)
    return Q @ left, S, V @ right.mT


def _polished(X: Tensor) -> tuple[Tensor, bool]:
    """Columns that are nearly orthonormal made so, to the third power of what they lack; False where that is much.

    X (XᵀX)^−½ to second order in E = XᵀX − I: what remains is about E³ / 3.
    """
    excess = X.mT @ X
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    close = bool((excess.abs() < torch.finfo(X.dtype).eps ** 0.25).all())
    return X - X @ (excess / 2 - 0.375 * (excess @ excess)), close
