"""The effective rank of a spectrum."""

import torch
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
