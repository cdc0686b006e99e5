"""Inputs of score-aware fits: queries as they meet the keys, and the attention that tokens receive."""

import torch
from torch import Tensor

from eigenscope.kv.measuring.capture import Captured
from eigenscope.kv.measuring.measures import attention_weights, masked_scores

ATTENDED = 4  # samples whose attention is held at a time: T² numbers a head each, as many as T²/2d of its keys
_GOLDEN = 0.6180339887498949  # its multiples are spread evenly modulo 1


@torch.no_grad()
def met_queries(seen: Captured, *, queries: slice = slice(None), keys: slice = slice(None), rounds: int = 4) -> Tensor:
    """Queries as the keys before rotation meet them, with which a codec of such keys is fitted.

    With rotary positions the score of query m and key n is q_mᵀ R(m)ᵀ R(n) k_n. What key n meets is therefore
    R(n)ᵀ R(m) q_m, and the score errors that an error e of a key causes are eᵀ M e, where M is the mean of
    R(n)ᵀ R(m) q_m q_mᵀ R(m)ᵀ R(n) over the pairs in which m looks at n. Each key draws ``rounds`` of the queries that
    look at it, evenly spread, and these are weighted by how many there are. Where nothing is rotated these are the
    queries themselves, as they are where the layer is not explained, so that its rotation is not known.

    Args:
        seen: of one layer.
        queries: which of its queries ask.
        keys: which of its keys are coded.
        rounds: queries drawn by each key.

    Returns:
        (B, query heads, rounds × keys, d), or the n queries, in their dtype.
    """
    context = seen.context
    if context.turn_back is None or not seen.explained:
        return seen.queries[..., queries, :]
    turned = context.turn(seen.queries)[..., queries, :]
    allowed = _allowed(seen)[:, queries]
    counts, order = allowed.sum(-2), allowed.cumsum(-2)  # (B or 1, T), (B or 1, n, T)
    share = counts[:, keys].double()
    weight = (share / share.mean().clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    places = torch.arange(counts.shape[-1], device=counts.device, dtype=torch.float64)
    met = []
    for number in range(rounds):
        rank = ((places * _GOLDEN + (number + 0.5) / rounds) % 1 * counts).floor()
        drawn = (order <= rank[:, None]).sum(-2).clamp_max(turned.shape[-2] - 1)  # of those that look at the key
        index = drawn[:, None, :, None].expand(*turned.shape[:2], -1, turned.shape[-1])
        met.append(
            context.turn_back(turned.gather(-2, index))[..., keys, :] * weight[:, None, :, None].to(turned.dtype)
        )
    return torch.cat(met, -2)


@torch.no_grad()
def received_attention(seen: Captured, *, queries: slice = slice(None)) -> Tensor:
    """Attention that each token receives from the queries, (B, heads, T); all alike where attention is not known."""
    if not seen.explained:
        return torch.ones_like(seen.keys[..., 0])
    context = seen.context
    Q, K = (context.turn(x) for x in (seen.queries, seen.keys))
    heads, T, d = K.shape[1:]
    received = []
    for start in range(0, len(K), ATTENDED):
        part = slice(start, start + ATTENDED)
        q, k = Q[part].float(), K[part].float()
        products = (q.reshape(len(q), heads, -1, d) @ k.mT).reshape(*q.shape[:-1], T)
        A = attention_weights(products, d, context.scale, mask_of(seen, part), context.causal)[..., queries, :]
        received.append(A.reshape(len(q), heads, -1, T).sum(-2))
    return torch.cat(received)


def mask_of(seen: Captured, part: slice) -> Tensor | None:
    """The mask of some samples."""
    mask = seen.context.mask
    return mask[part] if mask is not None and mask.ndim == 4 and len(mask) > 1 else mask


def _allowed(seen: Captured) -> Tensor:
    """Which queries look at which keys with any of their heads, (B or 1, n, T) bool."""
    n, T = seen.queries.shape[-2], seen.keys.shape[-2]
    nothing = torch.zeros(1, 1, n, T, dtype=torch.float32, device=seen.queries.device)
    scores = masked_scores(nothing, 1, None, seen.context.mask, seen.context.causal)
    return (scores > -torch.inf).any(1)
