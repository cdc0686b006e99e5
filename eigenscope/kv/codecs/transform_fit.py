"""Fitting of a transform codec: bases, bit allocation and scales."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.codecs.bit_planes import MAX_BITS, dequantize, distortions, quantize
from eigenscope.kv.codecs.codec import computed_in
from eigenscope.kv.codecs.rate_distortion import allocate_bits
from eigenscope.kv.codecs.transform_state import TransformState, bases, by_width
from eigenscope.linalg.threaded import eigh

_MOST_GROUPS = torch.iinfo(torch.int16).max  # TransformState.owner
_MOST_TOKENS_FOR_SCALES = 2048  # of each group: a scale is one number
_TOKENS_PER_LEVEL = 128  # as many for each level of the quantiser: with more levels the rare large ones decide
_SCALES = (0.85, 1.0, 1.15, 1.35, 1.6, 2.0, 2.6, 3.3)  # over the deviation; heavy tails want more


class Budget(NamedTuple):
    """Bits per element, or the relative error; and the tokens a group that one state serves, None for those seen."""

    bits_per_element: float | None
    error: float | None
    tokens: int | None


def fit_transform(
    X: Tensor, groups: tuple[int, ...], budget: Budget, metric: Tensor | None = None, weights: Tensor | None = None
) -> TransformState:
    """Fits the state of a transform codec.

    Args:
        X: (*batch, *groups, T, d), checked.
        groups: their sizes.
        budget: shared by the last dimension of groups, separate for those before.
        metric: (*groups, d, d) symmetric and invertible, S: the error e of a token counts as ‖S e‖².
        weights: (*batch, *groups, T) >= 0, how much a token counts, of mean 1 over a group.

    Raises:
        ValueError: there are more groups than a state can number, or the budget cannot be met.
    """
    block, d = X.shape[-2:]
    flat = math.prod(groups)
    if flat > _MOST_GROUPS:
        raise ValueError(f"X must have at most {_MOST_GROUPS} groups, got {flat} in groups {groups}")
    dtype = computed_in(X.dtype)

    def pooled(x: Tensor) -> Tensor:  # (*batch, *groups, T, n) to (groups, tokens, n)
        return x.to(dtype).reshape(-1, flat, block, x.shape[-1]).transpose(0, 1).flatten(1, 2)

    X = pooled(X)
    W = X.new_ones(()) if weights is None else pooled(weights[..., None])
    S = None if metric is None else metric.to(dtype).reshape(flat, d, d)
    unit = X.abs().amax().clamp_min(torch.finfo(dtype).tiny)
    X = X / unit  # so that no square over- or underflows
    mean = ((X * W).mean(1) * unit).to(torch.bfloat16)
    centred = X - mean.to(dtype)[:, None] / unit
    covariance = _second_moment(centred, W)
    values, vectors = eigh(covariance if S is None else S @ covariance @ S)
    bits = _allocate(
        _above_rounding(values.flip(-1)),
        _second_moment(X, W, S).diagonal(dim1=-2, dim2=-1).sum(-1),
        groups,
        budget,
        served=X.shape[1] if budget.tokens is None else budget.tokens,
        padding=8 * math.ceil(block / 8) / block,
        stored_rows=1 if S is None else 2,
    )
    owner, place = bits.nonzero(as_tuple=True)
    order = bits[owner, place].argsort(descending=True, stable=True)
    owner, place = owner[order], place[order]
    rows = (bits[owner, place][:, None] > torch.arange(MAX_BITS, device=X.device)).sum(0)
    directions = vectors.flip(-1).mT
    basis = _rounded((directions if S is None else directions @ S)[owner, place])
    synthesis, gains = None, None
    if S is not None:
        E, _, slots = bases(basis, basis, owner, flat, dtype)
        A = _regression(E, covariance).flatten(0, 1)[slots]
        synthesis, gains = _rounded(A), A.norm(dim=-1)
    opened = bases(basis, synthesis, owner, flat, dtype)
    stride = math.ceil(X.shape[1] / _MOST_TOKENS_FOR_SCALES)
    coefficients = (opened.analysis @ centred[:, ::stride].mT).flatten(0, 1)[opened.slots]
    counted = W.expand(flat, X.shape[1], 1)[:, ::stride, 0][owner]
    scale = _scales(coefficients, counted, unit, rows.tolist())
    return TransformState(
        groups,
        d,
        mean.reshape(*groups, d),
        basis,
        synthesis,
        owner.to(torch.int16),
        scale,
        None if gains is None else (scale * gains).to(torch.bfloat16),
        rows.to("cpu", torch.int32),
    )


def _second_moment(X: Tensor, W: Tensor, S: Tensor | None = None) -> Tensor:
    moment = X.mT @ (X * W) / X.shape[1]
    moment = moment if S is None else S @ moment @ S
    symmetric: Tensor = (moment + moment.mT) / 2
    return symmetric


def _above_rounding(values: Tensor) -> Tensor:
    """Eigenvalues (..., d), descending, with zero for what may be rounding of the largest of them.

    Rounding of the covariance and of ``eigh`` was seen to leave up to twice eps times the largest. It grows with √d.
    """
    noise = values.shape[-1] ** 0.5 * torch.finfo(values.dtype).eps * values[..., :1].clamp_min(0)
    return torch.where(values > noise, values, 0)


def _allocate(
    variances: Tensor,
    energies: Tensor,
    groups: tuple[int, ...],
    budget: Budget,
    *,
    served: int,
    padding: float,
    stored_rows: int,
) -> Tensor:
    """Bits (groups, d) of the directions, of variances (groups, d) in groups whose tokens have mean square energies."""
    d = variances.shape[-1]
    sharing = groups[-1] if groups else 1
    pools = variances.reshape(-1, sharing * d)
    plane = served * padding
    direction = stored_rows * (8 * d + 16) + 16  # int8 rows with a bfloat16 scale each, and the owner
    if budget.error is not None:
        energy = energies.reshape(-1, sharing).sum(-1)
        least_error = (
            (distortions()[-1] * pools.sum(-1) / energy.clamp_min(torch.finfo(energy.dtype).tiny)).sqrt().max()
        )
        if budget.error < least_error:
            raise ValueError(
                f"error must be at least {float(least_error):.4g} here, what {MAX_BITS} bits in every direction leave, "
                f"got {budget.error}"
            )
        allowed = budget.error**2 * energy
        bits = allocate_bits(pools, distortion=allowed, plane_cost=plane, direction_cost=direction)
        return bits.reshape(variances.shape)
    assert budget.bits_per_element is not None
    elements = served * sharing * d
    fixed = 16 * sharing * d + 32 * MAX_BITS / len(pools)  # means, and the numbers of rows
    least = (fixed + plane + direction) / elements
    if budget.bits_per_element < least:
        raise ValueError(
            f"bits_per_element must be at least {least:.4g} here, for the means and one direction at one bit, when "
            f"{served} tokens of {sharing} × {d} channels are served, got {budget.bits_per_element}"
        )
    allowed_bits = budget.bits_per_element * elements - fixed
    bits = allocate_bits(pools, budget=allowed_bits, plane_cost=plane, direction_cost=direction)
    return bits.reshape(variances.shape)


def _rounded(rows: Tensor) -> Tensor:
    """Rows (..., d) as int8, each up to its length."""
    largest = rows.abs().amax(-1, keepdim=True)
    return (rows * (127 / torch.where(largest > 0, largest, 1))).round().to(torch.int8)


def _regression(E: Tensor, covariance: Tensor) -> Tensor:
    """The rows A that make C A the best estimate of X from its coefficients C = X Eᵀ, (groups, k, d).

    Best for every metric at once: it is the conditional mean of Gaussian X. Without rounding of E = B S it is B S⁻¹.
    """
    cross = (E @ covariance).double()
    moment = cross @ E.double().mT
    size = moment.diagonal(dim1=-2, dim2=-1)
    # Rows of padding are zero; a direction of no variance is too.
    ridge = torch.where(size > 0, 1e-10 * size.sum(-1, keepdim=True), 1)
    rows: Tensor = torch.linalg.solve(moment + torch.diag_embed(ridge), cross)
    return rows.to(E.dtype)


def _scales(coefficients: Tensor, weights: Tensor, unit: Tensor, rows: list[int]) -> Tensor:
    """The scale (K,) bfloat16 of the least error at each direction's bits, of coefficients (K, N) times ``unit``."""
    deviation = (coefficients.square() * weights).mean(-1).sqrt()
    tried = (deviation * unit * deviation.new_tensor(_SCALES)[:, None]).to(torch.bfloat16)
    tried = tried.clamp_min(torch.finfo(torch.bfloat16).tiny)
    errors = torch.zeros_like(tried, dtype=coefficients.dtype)
    for width, part in by_width(rows):
        scale = tried[:, part, None].to(coefficients.dtype) / unit
        stride = math.ceil(coefficients.shape[-1] / (_TOKENS_PER_LEVEL * 2**width))
        x = coefficients[part, ::stride] / scale
        wrong = x - dequantize(quantize(x, width), width, x.dtype)
        errors[:, part] = ((wrong * scale).square() * weights[part, ::stride]).mean(-1)
    return tried.gather(0, errors.argmin(0, keepdim=True))[0]
