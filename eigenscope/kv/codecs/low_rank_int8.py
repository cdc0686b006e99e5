"""Low-rank codec: truncated SVD of each block with int8 factors, the reported pipeline and baseline."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import (
    Code,
    Codec,
    Factors,
    Fitted,
    check_fits,
    check_whole,
    computed_in,
    no_grad_no_autocast,
)
from eigenscope.linalg.randomized_svd import randomized_svd


@dataclass(frozen=True, eq=False)
class LowRankCode(Code):
    """X̂ = scale × ``C`` ``B`` + ``mean``.

    Attributes:
        C: (*batch, *groups, T, k) int8.
        B: (*batch, *groups, k, d) float16.
        scale: (*batch, *groups) float32.
        mean: (*batch, *groups, d) in the dtype of X, or None for zero.
    """

    C: Tensor
    B: Tensor
    scale: Tensor
    mean: Tensor | None = None


@dataclass(frozen=True)
class LowRankInt8(Codec):
    """Each block X ≈ C B by its own truncated SVD, C = U_k Σ_k in int8 with one scale a block, B = V_kᵀ in float16.

    The reference pipeline: ranks 16 for keys and 32 for values. A block holds T k + 2 k d + 4 bytes for each group.
    The bases are the larger part where T < 2d, and no longer context makes their share smaller. The blocks of a longer
    sequence are encoded in one call as a dimension of the batch.

    Args:
        rank: k >= 1, at most the smaller of T and d of any block.
        centred: remove the mean of each block's tokens before and store it in the dtype of X.
            The reported pipeline does not, and spends a direction and most of the scale of C on a mean that is large.

    Raises:
        ValueError: ``rank`` is not a whole number, or < 1.
    """

    rank: int
    centred: bool = False

    def __post_init__(self) -> None:
        check_whole(rank=self.rank)
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    @no_grad_no_autocast
    def encode(self, X: Tensor, fitted: Fitted) -> LowRankCode:
        """The code of X (*batch, *groups, T, d).

        Raises:
            ValueError: as :meth:`Codec.encode`, or the rank is larger than min(T, d).
        """
        check_fits(X, fitted)
        if self.rank > min(X.shape[-2:]):
            raise ValueError(f"rank must be at most min(T, d) of a block, {min(X.shape[-2:])}, got {self.rank}")
        tokens = X.to(computed_in(X.dtype))
        mean = tokens.mean(-2).to(X.dtype) if self.centred else None
        if mean is not None:
            tokens = tokens - mean.to(tokens.dtype)[..., None, :]
        B = randomized_svd(tokens, self.rank).Vh.to(torch.float16)
        C = tokens @ B.to(tokens.dtype).mT
        scale = C.abs().amax((-2, -1)).float() / 127
        steps = torch.where(scale > 0, scale, 1)[..., None, None].to(C.dtype)
        # An int8 would wrap: a subnormal scale rounds so coarsely that the largest entry may be past 127 of it.
        codes = (C / steps).round().clamp(-127, 127).to(torch.int8)
        return LowRankCode(X.shape[-2], X.dtype, codes, B.contiguous(), scale, mean)

    @no_grad_no_autocast
    def factors(self, code: Code, fitted: Fitted) -> Factors:  # noqa: D102
        if not isinstance(code, LowRankCode):
            raise ValueError(f"code must be a LowRankCode, got {type(code).__name__}")
        dtype = computed_in(code.dtype)
        mean = None if code.mean is None else code.mean.to(dtype)
        return Factors(code.C.to(dtype) * code.scale.to(dtype)[..., None, None], code.B.to(dtype), mean)
