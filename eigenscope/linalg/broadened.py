"""Eigendecomposition whose gradient stays finite for (nearly) equal eigenvalues."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import debug_unwrap

from eigenscope.linalg.threaded import eigh


class _BroadenedEigh(torch.autograd.Function):
    """``eigh`` with 1 / (λj − λi) replaced by a Lorentzian in the backward pass."""

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(A)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_vectors: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gaps = values[..., None, :] - values[..., :, None]
        eps = torch.finfo(values.dtype).eps
        width_squared = eps * values.abs().amax(-1)[..., None, None].square()
        inverse_gaps = gaps / (gaps.square() + width_squared).clamp_min(torch.finfo(values.dtype).tiny)
        inner = inverse_gaps * (vectors.mT @ grad_vectors) + torch.diag_embed(grad_values)
        grad: Tensor = vectors @ inner @ vectors.mT
        return grad


def broadened_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., n) ascending and vectors (..., n, n) of symmetric matrices, as ``torch.linalg.eigh``.

    The derivative of an eigenvector divides by gaps λj − λi and does not exist where two eigenvalues are equal. Here
    1 / gap is gap / (gap² + w²) with w = sqrt(eps) λmax: for gaps well above w it is the derivative, relative error
    (w / gap)²; at equal eigenvalues it is 0, the mean over the two orders in which a perturbation may split them.
    The broadening is that of differentiable tensor networks (Liao et al., *Differentiable programming tensor
    networks*, Phys. Rev. X 9, 2019). First derivatives in reverse mode only; under functorch transforms and in
    forward mode the derivative is torch's own.
    """
    if torch.is_grad_enabled() and A.requires_grad and debug_unwrap(A) is A:
        values, vectors = _BroadenedEigh.apply(A)
        return values, vectors
    return eigh(A)
