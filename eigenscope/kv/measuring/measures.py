"""Attention error measures: score RMSE, KL divergence and output cosine with decoded keys and values."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import computed_in, no_grad_no_autocast


class AttentionChange(NamedTuple):
    """Errors of attention with decoded keys and values, each (*batch, query heads), over the unmasked queries.

    Attributes:
        score_rmse: root mean square difference of scores, over the tokens that a query may look at.
        attention_kl: mean Kullback–Leibler divergence of the decoded attention from the exact one, in nats.
        output_cosine: mean cosine between exact and decoded outputs.
    """

    score_rmse: Tensor
    attention_kl: Tensor
    output_cosine: Tensor


@no_grad_no_autocast
def relative_error(exact: Tensor, decoded: Tensor, dim: int | tuple[int, ...] | None = (-2, -1)) -> Tensor:
    """‖X − X̂‖ / ‖X‖ by the Frobenius norm.

    Args:
        exact: X, floating.
        decoded: X̂, of its shape.
        dim: the dimensions that are one matrix; None: all.

    Returns:
        The remaining dimensions, at least float32. Where X is zero: 0 if X̂ is too, otherwise inf.

    Raises:
        ValueError: the shapes differ.
    """
    _check("decoded", decoded, "exact", exact)
    dtype = computed_in(exact.dtype)
    size = exact.to(dtype).abs().amax(() if dim is None else dim, keepdim=True)
    unit = torch.where(size > 0, size, 1)
    exact, decoded = exact.to(dtype) / unit, decoded.to(dtype) / unit
    wrong = torch.linalg.vector_norm(exact - decoded, dim=dim)
    return torch.where(wrong > 0, wrong / torch.linalg.vector_norm(exact, dim=dim), 0)


@no_grad_no_autocast
def attention_change(
    queries: Tensor,
    exact: tuple[Tensor, Tensor],
    decoded: tuple[Tensor, Tensor],
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> AttentionChange:
    """Compares attention with exact keys and values to attention with decoded ones.

    Everything is computed in the dtype of the queries, at least float32.

    Args:
        queries: (*batch, query heads, n, d) floating; with r query heads for each key head, those of key
            head h are h r, …, h r + r − 1.
        exact: keys (*batch, heads, T, d) and values (*batch, heads, T, d of values).
        decoded: of the same shapes.
        scale: of the scores; None is 1/√d.
        mask: broadcasts against (*batch, query heads, n, T): boolean, True where a query may look, or numbers that are
            added to the scores, −inf where it may not.
        causal: the queries are the last n tokens, and none looks at a later one.

    Returns:
        AttentionChange. Where no query of a head may look anywhere: 0, 0 and 1. An output of zero has cosine 1 with
        one of zero, otherwise 0.

    Raises:
        ValueError: shapes do not fit each other.
    """
    for name, kept, other in zip(("keys", "values"), exact, decoded, strict=True):
        _check(f"decoded {name}", other, f"exact {name}", kept)
    (K, V), heads = exact, exact[0].shape[-3]
    if V.shape[:-1] != K.shape[:-1] or queries.shape[-1] != K.shape[-1] or queries.shape[-3] % heads:
        raise ValueError(
            f"queries must have a multiple of the heads of keys and their channels, and values their tokens, got "
            f"shapes {tuple(queries.shape)}, {tuple(K.shape)} and {tuple(V.shape)}"
        )
    dtype = computed_in(queries.dtype)
    *batch, _, _, d = queries.shape
    Q = queries.to(dtype).reshape(*batch, heads, -1, d)
    shape = (*queries.shape[:-1], K.shape[-2])

    def attended(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        products = (Q @ keys.to(dtype).mT).reshape(shape)
        A = attention_weights(products, d, scale, mask, causal)
        output = A.reshape(*Q.shape[:-1], -1) @ values.to(dtype)
        return masked_scores(products, d, scale, mask, causal), A, output.reshape(*queries.shape[:-1], -1)

    scores, A, output = attended(*exact)
    scores_hat, _, output_hat = attended(*decoded)
    seen = scores > -torch.inf
    looking = seen.any(-1)
    difference = torch.where(seen, scores - scores_hat, 0)
    logs = torch.where(seen, scores.log_softmax(-1) - scores_hat.log_softmax(-1), 0)
    divergence = (A * logs).sum(-1).clamp_min(0)
    lengths = output.norm(dim=-1) * output_hat.norm(dim=-1)
    both_zero = (output == 0).all(-1) & (output_hat == 0).all(-1)
    cosine = torch.where(lengths > 0, (output * output_hat).sum(-1) / lengths, both_zero.to(dtype))
    count = looking.sum(-1).clamp_min(1)
    return AttentionChange(
        (difference.square().sum((-2, -1)) / seen.sum((-2, -1)).clamp_min(1)).sqrt(),
        torch.where(looking, divergence, 0).sum(-1) / count,
        torch.where(looking.any(-1), torch.where(looking, cosine, 0).sum(-1) / count, 1),
    )


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


def _check(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.shape != like.shape:
        raise ValueError(f"{name} must be of the shape of {like_name}, {tuple(like.shape)}, got {tuple(x.shape)}")
