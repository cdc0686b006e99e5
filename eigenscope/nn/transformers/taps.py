"""SVD taps: the spectrum of a layer's tokens as features for a classifier, and controls of equal width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eigenscope.linalg import fix_signs, gram_svd
from eigenscope.nn.hook_point import HookPoint

FeatureKind = Literal["svd", "svd_raw", "gram_diagonal", "pooled", "zeros"]
_KINDS = get_args(FeatureKind)


@dataclass(frozen=True)
class TapConfig:
    """Where a network is tapped and what is read there.

    Args:
        layers: 1-based layers after which tokens are read, strictly increasing.
        rank: k, the channels that tokens are projected to; a tap yields 2k + 2 features.
        features: the kind of features, see :func:`tap_features`.

    Raises:
        ValueError: layers are empty, below 1 or not increasing, rank is below 1, or the kind is unknown.
    """

    layers: tuple[int, ...]
    rank: int = 32
    features: FeatureKind = "svd"

    def __post_init__(self) -> None:
        """Checks what can be checked without the network."""
        increasing = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
        if not self.layers or self.layers[0] < 1 or not increasing:
            raise ValueError(f"taps.layers must be 1-based and strictly increasing, got {list(self.layers)}")
        if self.rank < 1:
            raise ValueError(f"taps.rank must be at least 1, got {self.rank}")
        if self.features not in _KINDS:
            raise ValueError(f"taps.features must be one of {', '.join(_KINDS)}, got {self.features!r}")


def tap_features(tokens: Tensor, kind: FeatureKind) -> Tensor:
    """Summarises token matrices of k channels in 2k + 2 numbers each.

    ========================  ================  ==================  =================  ===========
    kind                      k numbers         k numbers           1 number           1 number
    ========================  ================  ==================  =================  ===========
    ``svd``, ``svd_raw``      σ_i / Σσ          diag(Vᵀ)            k − Σ diag(Vᵀ)²    H(σ / Σσ)
    ``gram_diagonal``         n_i / Σn          0                   0                  H(n / Σn)
    ``pooled``                mean of tokens    their deviation     0                  0
    ``zeros``                 0                 0                   0                  0
    ========================  ================  ==================  =================  ===========

    σ and Vᵀ are of the thin SVD of the token matrix, σ descending; n_i is the norm of channel i, that is the root of
    the Gram matrix' diagonal; H is the entropy in nats. k − Σ diag² is the off-diagonal energy of an orthogonal
    matrix. ``svd`` fixes the sign of each right singular vector by :func:`eigenscope.linalg.fix_signs`, which makes
    its features a function of the tokens; ``svd_raw`` keeps the solver's signs. Neither depends on the tokens' order.

    Args:
        tokens: (..., N, k) float32 or float64; the SVD kinds need N ≥ k. Non-finite entries count as 0,
            and so does a feature that overflows.
        kind: one of the above.

    Returns:
        (..., 2k + 2), finite, the dtype of ``tokens``.

    Raises:
        ValueError: the kind is unknown, or there are too few tokens for it.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if kind.startswith("svd") and tokens.shape[-2] < tokens.shape[-1]:
        raise ValueError(f"tokens must be (..., N, k) with N ≥ k for kind {kind!r}, got shape {tuple(tokens.shape)}")
    tokens = torch.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)
    blank = torch.zeros_like(tokens[..., 0, :])
    if kind == "zeros":
        parts = [blank, blank, blank[..., :1], blank[..., :1]]
    elif kind == "pooled":
        parts = [tokens.mean(-2), tokens.std(-2, correction=0), blank[..., :1], blank[..., :1]]
    elif kind == "gram_diagonal":
        shares = _shares(torch.linalg.vector_norm(tokens, dim=-2))
        parts = [shares, blank, blank[..., :1], _entropy(shares)]
    else:
        _, S, Vh = gram_svd(tokens, vectors="right")
        assert Vh is not None
        diagonal = (fix_signs(Vh) if kind == "svd" else Vh).diagonal(dim1=-2, dim2=-1)
        shares = _shares(S)
        off_diagonal = tokens.shape[-1] - diagonal.square().sum(-1, keepdim=True)
        parts = [shares, diagonal, off_diagonal, _entropy(shares)]
    return torch.nan_to_num(torch.cat(parts, dim=-1), nan=0.0, posinf=0.0, neginf=0.0)


def _shares(x: Tensor) -> Tensor:
    total: Tensor = x.sum(-1, keepdim=True)
    return x / total.clamp_min(torch.finfo(x.dtype).tiny)


def _entropy(shares: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(shares).sum(-1, keepdim=True)
    return entropy


class SVDTaps(nn.Module):
    """Projects the tokens of several layers and turns them into features, all layers in one stacked decomposition.

    The features carry no gradient, so the projections could never learn: they are frozen parameters, counted and
    saved but not trained. Everything runs in float32 outside autocast; on CUDA, products follow
    ``torch.set_float32_matmul_precision``, whose default ``highest`` is what the features are tested at.

    Hook points: ``inputs.i`` (B, N, width), the tokens that tap i reads, with their gradient; ``projected``
    (taps, B, N, rank) float32, without.

    Args:
        config: layers, rank and kind of features.
        width: channels of a token.
        num_tokens: N, tokens per sample.
        depth: layers of the network.

    Raises:
        ValueError: a layer beyond ``depth``, or a rank above min(num_tokens, width).
    """

    def __init__(self, config: TapConfig, *, width: int, num_tokens: int, depth: int) -> None:
        super().__init__()
        if config.layers[-1] > depth:
            raise ValueError(f"taps.layers must lie within 1 to {depth}, the network's layers, got {config.layers}")
        if config.rank > min(num_tokens, width):
            raise ValueError(
                f"taps.rank must be at most {min(num_tokens, width)}, the smaller of {num_tokens} tokens and width "
                f"{width}, got {config.rank}"
            )
        self.config = config
        self.projections = nn.Parameter(torch.empty(len(config.layers), config.rank, width), requires_grad=False)
        nn.init.trunc_normal_(self.projections, std=0.02)
        self.inputs = nn.ModuleList(HookPoint() for _ in config.layers)
        self.projected = HookPoint()

    @property
    def num_features(self) -> int:
        """Features per sample: taps × (2 rank + 2)."""
        return len(self.config.layers) * (2 * self.config.rank + 2)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Features of the tapped layers.

        Args:
            tokens: one (B, N, width) tensor per tap.

        Returns:
            (B, num_features) float32 without gradient, tap by tap.
        """
        tokens = [point(layer) for point, layer in zip(self.inputs, tokens, strict=True)]
        with torch.no_grad(), torch.autocast(tokens[0].device.type, enabled=False):
            pairs = zip(tokens, self.projections, strict=True)
            projected = self.projected(torch.stack([layer.float() @ weight.float().mT for layer, weight in pairs]))
            features = tap_features(projected, self.config.features)
        return features.movedim(0, 1).flatten(1)
