"""Attention on compressed keys and values without decoding them."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eigenscope.kv.codec import Factors, computed_in, no_grad_no_autocast


@no_grad_no_autocast
def compressed_attention(
    queries: Tensor,
    keys: Factors | Sequence[Factors],
    values: Factors | Sequence[Factors],
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(scale · Q K̂ᵀ + mask) V̂ for K̂ and V̂ as :meth:`eigenscope.kv.Codec.factors` gives them.

    Scores are (Q Bᵀ) Cᵀ and outputs (A C) B, so a query costs T k + k d products a head rather than T d. It equals
    attention on the decoded tensors up to rounding. Keys must be as the scores take them: a rotation by position that
    comes after decoding does not commute with B. All models that :class:`eigenscope.kv.SpectralCache` serves rotate
    their keys, so it does not use this. Everything is computed in float32 at least, under autocast too.

    Args:
        queries: (*batch, query heads, n, d) floating. With r query heads for each key head, those of key head h are
            h r, …, h r + r − 1; codes are not repeated.
        keys: of X (*batch, heads, T, d), or of blocks (*batch, blocks, heads, T, d), whose tokens follow each other;
            or several of these, such as exact first tokens (``Factors(K)``), blocks, and an exact window.
        values: likewise, the same numbers of tokens; the width of values may be another.
        scale: of the scores; None is 1/√d.
        mask: broadcasts against (*batch, query heads, n, all T): boolean, True where a query may look, or numbers that
            are added to the scores.
        causal: the queries are the last n tokens, and none looks at a later one.

    Returns:
        (*batch, query heads, n, d of values) in the dtype of ``queries``; zero for a query that may look nowhere.

    Raises:
        ValueError: the heads, channels or numbers of tokens do not fit each other.
    """
    key_parts = [keys] if isinstance(keys, Factors) else list(keys)
    value_parts = [values] if isinstance(values, Factors) else list(values)
    key_parts, value_parts = ([_with_blocks(part, queries) for part in parts] for parts in (key_parts, value_parts))
    lengths = [part.C.shape[-4] * part.C.shape[-2] for part in key_parts]
    if not lengths or lengths != [part.C.shape[-4] * part.C.shape[-2] for part in value_parts]:
        counts = [part.C.shape[-4] * part.C.shape[-2] for part in value_parts]
        raise ValueError(f"keys and values must be parts of equal numbers of tokens, got {lengths} and {counts}")
    Q = _grouped(queries, key_parts[0].C.shape[-3])  # (*batch, 1, heads, r n, d)
    scores = torch.cat([_scores(Q, part) for part in key_parts], -1)
    shape = (*queries.shape[:-1], scores.shape[-1])
    A = attention_weights(scores.reshape(shape), queries.shape[-1], scale, mask, causal).reshape(scores.shape)
    starts = [0, *itertools.accumulate(lengths)]
    output = torch.stack(
        [
            _outputs(A[..., start : start + length], part)
            for start, length, part in zip(starts, lengths, value_parts, strict=False)
        ]
    ).sum(0)
    return output.reshape(*queries.shape[:-1], output.shape[-1]).to(queries.dtype)


def attention_weights(
    products: Tensor, channels: int, scale: float | None, mask: Tensor | None, causal: bool
) -> Tensor:
    """The softmax of masked scores, from products Q Kᵀ (..., n, T); rows that may look nowhere are zero."""
    return masked_scores(products, channels, scale, mask, causal).softmax(-1).nan_to_num(0)


def masked_scores(products: Tensor, channels: int, scale: float | None, mask: Tensor | None, causal: bool) -> Tensor:
    """Scores (..., n, T) from products Q Kᵀ, −inf where a query may not look; arguments as above."""
    scores = products * (1 / math.sqrt(channels) if scale is None else scale)
    n, tokens = scores.shape[-2:]
    if causal:
        if n > tokens:
            raise ValueError(f"causal queries must be the last of the {tokens} tokens, got {n} queries")
        ahead = torch.ones(n, tokens, dtype=torch.bool, device=scores.device).triu(tokens - n + 1)
        scores = scores.masked_fill(ahead, -torch.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)


def _with_blocks(part: Factors, queries: Tensor) -> Factors:
    """C (*batch, blocks, heads, T, k), whether or not the part has a dimension of blocks."""
    if part.C.ndim not in (queries.ndim, queries.ndim + 1):
        raise ValueError(
            f"keys and values must be (*batch, heads, T, d) or (*batch, blocks, heads, T, d) for queries of shape "
            f"{tuple(queries.shape)}, got C of shape {tuple(part.C.shape)}"
        )
    if part.C.ndim > queries.ndim:
        return part
    has_batch = part.B is not None and part.B.ndim == part.C.ndim
    B = part.B.unsqueeze(-4) if has_batch and part.B is not None else part.B
    return Factors(part.C.unsqueeze(-4), B, part.mean)


def _grouped(queries: Tensor, heads: int) -> Tensor:
    if queries.shape[-3] % heads:
        raise ValueError(f"queries must have a multiple of {heads} heads, got shape {tuple(queries.shape)}")
    Q = queries.to(computed_in(queries.dtype))
    *batch, _, n, d = Q.shape
    return Q.reshape(*batch, 1, heads, -1, d) if n else Q


def _scores(Q: Tensor, part: Factors) -> Tensor:
    """Products (*batch, heads, r n, blocks × T) of queries (*batch, 1, heads, r n, d) with the keys of a part."""
    width = part.C.shape[-1] if part.B is None else part.B.shape[-1]
    if width != Q.shape[-1] or part.C.shape[-3] != Q.shape[-3]:
        raise ValueError(
            f"keys must have {Q.shape[-3]} heads of the queries' {Q.shape[-1]} channels, got "
            f"{part.C.shape[-3]} of {width}"
        )
    projected = Q if part.B is None else Q @ part.B.to(Q.dtype).mT
    products = projected @ part.C.to(Q.dtype).mT
    if part.mean is not None:
        products = products + (Q @ part.mean.to(Q.dtype)[..., None])
    flat: Tensor = products.movedim(-4, -2).flatten(-2)
    return flat


def _outputs(A: Tensor, part: Factors) -> Tensor:
    """What weights (*batch, heads, r n, blocks × T) make of the values of a part."""
    blocks, tokens = part.C.shape[-4], part.C.shape[-2]
    by_block = A.reshape(*A.shape[:-1], blocks, tokens).movedim(-2, -4)
    mixed = by_block @ part.C.to(A.dtype)
    output: Tensor = (mixed if part.B is None else mixed @ part.B.to(A.dtype)).sum(-4)
    if part.mean is not None:
        output = output + A.sum(-1, keepdim=True) * part.mean.to(A.dtype)[..., None, :]
    return output
