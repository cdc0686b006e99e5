"""Score-aware transform codec: minimises the error of attention scores and outputs, not of keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import check_tokens, computed_in, no_grad_no_autocast
from eigenscope.kv.codecs.transform_codec import TransformCodec
from eigenscope.kv.codecs.transform_fit import fit_transform
from eigenscope.kv.codecs.transform_state import TransformState
from eigenscope.linalg.threaded import eigh


@dataclass(frozen=True)
class ScoreAwareCodec(TransformCodec):
    """A :class:`TransformCodec` that minimises the error of attention scores and outputs.

    For keys, fitted with queries: the scores Q Kᵀ change by ‖Q (K − K̂)ᵀ‖² = Σ ‖S (k − k̂)‖² over the tokens, with
    S = (QᵀQ)^½. So K S is coded in the eigenbasis of its own covariance, and decoding undoes S. Directions that no
    query looks at get no bits, however much the keys vary there. A budget ``error`` is then that of the scores.

    For values, fitted with weights, such as the attention that each token receives: the covariance, and the error that
    the budget counts, are weighted token by token.

    Storage is as for :class:`TransformCodec`, except that with queries each direction is stored twice, once to
    encode and once to decode, since neither follows from the other: 2d + 8 bytes.

    Args:
        bits_per_element: as for :class:`TransformCodec`.
        error: as for :class:`TransformCodec`, but of K S with queries, and weighted with weights.
        tokens: as for :class:`TransformCodec`.
        ridge: added to QᵀQ/n on the diagonal, as a fraction of its mean eigenvalue. Directions that the queries at
            hand do not look at, later ones may; and S must be invertible. A budget ``error`` includes this part.

    Raises:
        ValueError: as :class:`TransformCodec`, or ``ridge`` is not from 1e-6 to 1.
    """

    ridge: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1e-6 <= self.ridge <= 1:
            raise ValueError(f"ridge must be from 1e-6 to 1, got {self.ridge}")

    @no_grad_no_autocast
    def fit(
        self, X: Tensor, *, groups: int = 1, queries: Tensor | None = None, weights: Tensor | None = None
    ) -> TransformState:
        """Learns bases, bits and scales from X and from what attention does with it.

        Args:
            X: (*batch, *groups, T, d) keys or values.
            groups: as in :meth:`Codec.fit`.
            queries: (*batch', *groups[:-1], r × groups[-1], n, d) floating, n >= 1: with grouped-query heads r query
                heads share a key head, those of head h being h r, …, h r + r − 1. The batch may differ from that of X.
                Without dimensions of groups: (*batch', n, d).
            weights: (*batch, *groups, T) >= 0. They are divided by their mean over each group.

        Raises:
            ValueError: as :meth:`TransformCodec.fit`, or neither queries nor weights are given, or are of another
                shape, not finite, negative, or all zero in a group.
        """
        check_tokens(X, groups)
        if queries is None and weights is None:
            raise ValueError(
                "queries or weights must be given: a ScoreAwareCodec is fitted with queries for keys, "
                "with weights for values"
            )
        sizes = tuple(X.shape[X.ndim - 2 - groups : -2])
        metric = None if queries is None else _query_metric(queries, sizes, X, self.ridge)
        return fit_transform(
            X, sizes, self._budget(), metric, None if weights is None else _normalised(weights, X, groups)
        )


def _query_metric(queries: Tensor, groups: tuple[int, ...], X: Tensor, ridge: float) -> Tensor:
    """(QᵀQ/n)^½ of the queries of each group, (*groups, d, d), up to one factor that all groups share."""
    d = X.shape[-1]
    lead = queries.shape[queries.ndim - 2 - len(groups) : -2]
    fits = queries.ndim >= len(groups) + 2 and queries.shape[-1] == d and len(lead) == len(groups)
    if not fits or lead[:-1] != groups[:-1] or (groups and lead[-1] % groups[-1]) or queries.numel() == 0:
        raise ValueError(
            f"queries must be (*batch, *groups, n, d) with groups {groups}, the last a multiple of that, and d = {d}, "
            f"got shape {tuple(queries.shape)}"
        )
    if not queries.is_floating_point() or not queries.isfinite().all():
        raise ValueError(f"queries must be floating and finite, got {queries.dtype}")
    dtype = computed_in(X.dtype)
    Q = queries.to(dtype)
    if groups:
        Q = Q.reshape(*Q.shape[:-3], groups[-1], -1, d)
    Q = Q.reshape(-1, *groups, *Q.shape[-2:]).movedim(0, -3).flatten(-3, -2)  # (*groups, n, d)
    unit = Q.abs().amax().clamp_min(torch.finfo(dtype).tiny)
    moment = (Q / unit).mT @ (Q / unit) / Q.shape[-2]
    level = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    level = torch.where(level > 0, level, 1)  # no query looks anywhere: every direction alike
    values, vectors = eigh(moment)
    root = (values.clamp_min(0) + ridge * level).sqrt()
    metric: Tensor = (vectors * root[..., None, :]) @ vectors.mT
    return metric


def _normalised(weights: Tensor, X: Tensor, groups: int) -> Tensor:
    if weights.shape != X.shape[:-1] or not weights.is_floating_point():
        wanted = f"floating, (*batch, *groups, T) = {tuple(X.shape[:-1])}"
        raise ValueError(f"weights must be {wanted}, got {weights.dtype} of shape {tuple(weights.shape)}")
    if not ((weights >= 0) & (weights < torch.inf)).all():
        raise ValueError("weights must be finite and >= 0")
    weights = weights.to(computed_in(X.dtype))
    batch = tuple(range(X.ndim - 2 - groups))
    mean = weights.mean((*batch, -1), keepdim=True)
    if not (mean > 0).all():
        raise ValueError("weights must not be all zero in any group")
    return weights / mean
