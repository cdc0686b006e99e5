"""Thin SVD of tall matrices by their Gram matrix; its gradient stays finite for equal and zero singular values."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import debug_unwrap

from eigenscope.linalg.finite import has_values, refuse_non_finite
from eigenscope.linalg.threaded import eigh, eigvalsh


def thin_svd(
    A: Tensor, compute_dtype: torch.dtype, *, short: bool, long: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The thin SVD A = Q diag(S) Wᵀ of matrices (..., m, n) with m >= n, through AᵀA.

    The derivative of a singular vector divides by σj² − σi² and by σi, and does not exist where two singular values are
    equal or one is zero. Here 1 / x is x / (x² + w²), with w = sqrt(eps) times the largest of the x: for x well above
    w it is the derivative, relative error (w / x)², which is how well the Gram matrix knows x. At equal singular values
    it is 0, the mean over the two orders in which a perturbation may split them; so it is for the vectors of a singular
    value of zero, and for that value itself. The broadening is that of differentiable tensor networks (Liao et al.,
    *Differentiable programming tensor networks*, Phys. Rev. X 9, 2019). The gradient of vectors grows as 1 / σ and
    overflows as that does. First derivatives in reverse mode only; under functorch transforms and in forward mode the
    derivative is torch's own, which does not exist there.

    Args:
        A: (..., m, n) float32 or float64.
        compute_dtype: float32 or float64, of the Gram matrix.
        short: asks for W.
        long: asks for Q, which W comes with.

    Returns:
        S (..., n), in the dtype of A; W (..., n, n) and Q (..., m, n) in ``compute_dtype``, None if not asked for.

    Raises:
        torch.linalg.LinAlgError: an entry is not finite and can be looked at.
    """
    if torch.is_grad_enabled() and A.requires_grad and (torch.compiler.is_compiling() or debug_unwrap(A) is A):
        S, W, *Q = _ThinSVD.apply(A, compute_dtype, long)
        return S, W if short else None, Q[0] if Q else None
    B, scale = _scaled(A, compute_dtype)
    if not (short or long):
        return _unscaled(_root(eigvalsh(B.mT @ B).flip(-1)), scale), None, None
    s, W, Q = _factors(B, long)
    return _unscaled(s, scale), _marked(W, scale), None if Q is None else _marked(Q, scale)


class _ThinSVD(torch.autograd.Function):
    """S, W and, if asked for, Q; with broadened derivatives."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, compute_dtype: torch.dtype, long: bool) -> tuple[Tensor, ...]:
        B, scale = _scaled(A, compute_dtype)
        s, W, Q = _factors(B, long)
        factors = (_marked(W, scale),) if Q is None else (_marked(W, scale), _marked(Q, scale))
        ctx.save_for_backward(B, scale, s, *factors)
        ctx.set_materialize_grads(False)
        return _unscaled(s, scale), *factors

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_S: Tensor | None, grad_W: Tensor | None, grad_Q: Tensor | None = None
    ) -> tuple[Tensor, None, None]:
        B, scale, s, W, *long = ctx.saved_tensors
        width = torch.finfo(s.dtype).eps ** 0.5
        inverse = _broadened_inverse(s, width * s[..., :1])
        inner = torch.zeros_like(W, dtype=scale.dtype)
        if grad_S is not None:
            inner = inner + torch.diag_embed(grad_S * inverse)
        columns = None
        if grad_Q is not None:  # of Q = Z (ZᵀZ)^-½, where the columns of Z = B W are orthogonal, of lengths s
            (Q,) = long
            turned = Q.mT @ grad_Q
            sums = _broadened_inverse(s[..., None, :] + s[..., :, None], width * s[..., :1, None])
            columns = (grad_Q - Q @ turned) * inverse[..., None, :] + Q @ ((turned - turned.mT) * sums)
            grad_W = B.mT @ columns if grad_W is None else grad_W + B.mT @ columns
        if grad_W is not None:
            squares = s.square()
            gaps = squares[..., None, :] - squares[..., :, None]
            mixed = _broadened_inverse(gaps, width * squares[..., :1, None]) * (W.mT @ grad_W)
            inner = inner + (mixed + mixed.mT) / scale
        turned_back = W.to(inner.dtype)
        grad_A = B.to(inner.dtype) @ (turned_back @ inner @ turned_back.mT)
        return grad_A if columns is None else grad_A + columns @ W.mT / scale, None, None


def _scaled(A: Tensor, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A over the largest magnitude of each matrix, and that, (..., 1, 1).

    It is NaN, and the matrix zero, where an entry is not finite and cannot be looked at.
    """
    largest = A.detach().abs().amax((-2, -1), keepdim=True)
    scale = largest.clamp_min(torch.finfo(A.dtype).tiny)
    if has_values(scale):
        refuse_non_finite("A", scale)  # on a GPU the solver waits for its own report in any case
        return (A / scale).to(compute_dtype), scale
    finite = scale.isfinite()
    return torch.where(finite, A / scale, 0).to(compute_dtype), torch.where(finite, scale, torch.nan)


def _factors(B: Tensor, long: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    squares, W = eigh(B.mT @ B)
    W = W.flip(-1)
    return _root(squares.flip(-1)), W, _orthonormal(B @ W) if long else None


def _unscaled(s: Tensor, scale: Tensor) -> Tensor:
    return s * scale[..., 0]


def _marked(vectors: Tensor, scale: Tensor) -> Tensor:
    """NaN where the matrix had an entry that is not finite."""
    return vectors if has_values(scale) else torch.where(scale.isfinite(), vectors, torch.nan)


def _broadened_inverse(x: Tensor, width: Tensor) -> Tensor:
    return x / (x.square() + width.square()).clamp_min(torch.finfo(x.dtype).tiny)


def _root(squares: Tensor) -> Tensor:
    """Square root of eigenvalues that rounding may have pushed below zero; its gradient at zero is zero, not inf."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, torch.ones_like(squares)).sqrt(), 0)


def _orthonormal(columns: Tensor) -> Tensor:
    """Normalises orthogonal columns; QR, unlike a division by S, stays orthonormal where a column is zero."""
    Q, R = torch.linalg.qr(columns)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Q.dtype)
    oriented: Tensor = Q * signs[..., None, :]
    return oriented
