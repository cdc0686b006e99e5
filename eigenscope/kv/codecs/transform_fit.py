"""Fitting of a transform codec: bases, bit allocation and scales."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.codecs.bit_planes import MAX_BITS, dequantize, distortions, quantize
from eigenscope.kv.codecs.codec import computed_in
from eigenscope.kv.codecs.rate_distortion import allocate_bits
from eigenscope.kv.codecs.token_norms import decode_norms, encode_norms, norm_level
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


class Spectrum(NamedTuple):
    """Variances of calibration data along its principal directions, and what codes of it cost.

    Attributes:
        variances: (groups, d) float64, descending, in units of X²: by how much the squared error of a token falls if
            a direction is coded without error. 0 for what may be rounding.
        energies: (groups,) float64 in units of X², mean squares of the tokens.
        tokens: of each group, those of all sequences together.
        padding: bits of a plane for each token, above 1 where blocks do not fill their last byte.
        stored_rows: vectors of d entries that are stored for each direction.
        fixed_bits: stored for each group whatever its directions.
        token_bits: stored for each token and group whatever the directions.
    """

    variances: Tensor
    energies: Tensor
    tokens: int
    padding: float
    stored_rows: int
    fixed_bits: int
    token_bits: int

    def plane_bits(self, served: int) -> float:
        """Bits of one plane of one direction, for so many tokens."""
        return served * self.padding

    def direction_bits(self) -> int:
        """Bits of the state for a direction: int8 rows with a bfloat16 scale each, and the owner."""
        return self.stored_rows * (8 * self.variances.shape[-1] + 16) + 16

    def shared_bits(self, served: int) -> float:
        """Bits that are stored whatever the allocation: means, norms, and the numbers of rows."""
        groups = len(self.variances)
        return groups * (self.fixed_bits + self.token_bits * served * self.padding) + 32 * MAX_BITS


class TransformFit:
    """Principal directions of calibration data, to which bits are still to be allocated.

    Args:
        X: (*batch, *groups, T, d), checked.
        groups: their sizes.
        metric: (*groups, d, d) symmetric and invertible, S: the error e of a token counts as ‖S e‖².
        weights: (*batch, *groups, T) >= 0, how much a token counts, of mean 1 over a group.
        token_norms: each token is divided by its norm first, so that the errors of small ones are smaller.

    Attributes:
        spectrum: of the data.
        groups: their sizes.
        channels: d.
        mean: (*groups, d) bfloat16.
        directions: (groups, d, d), the principal ones first.

    Raises:
        ValueError: there are more groups than a state can number.
    """

    def __init__(
        self,
        X: Tensor,
        groups: tuple[int, ...],
        metric: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        token_norms: bool = False,
    ) -> None:
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
        square = unit.double().square()
        energies = _second_moment(X, W, S).diagonal(dim1=-2, dim2=-1).sum(-1).double() * square
        self.mean = ((X * W).mean(1) * unit).to(torch.bfloat16)
        X = X - self.mean.to(dtype)[:, None] / unit
        self._norm: Tensor | None = None
        share = X.new_ones(flat, 1)
        counted = W
        if token_norms:
            self._norm = (norm_level(X) * unit).to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)
            level = self._norm.to(dtype) / unit
            norms = decode_norms(encode_norms(X, level), level)
            X, counted = X / norms, W * norms.square()  # an error counts by the norm that it is multiplied with
            share = counted.mean(1)
            counted = counted / share[:, None].clamp_min(torch.finfo(dtype).tiny)
        self._covariance = _second_moment(X, W)
        values, vectors = eigh(self._covariance if S is None else S @ self._covariance @ S)
        self.spectrum = Spectrum(
            variances=_above_rounding(values.flip(-1)).double() * share.double() * square,
            energies=energies,
            tokens=X.shape[1],
            padding=8 * math.ceil(block / 8) / block,
            stored_rows=1 if S is None else 2,
            fixed_bits=16 * d + (16 if token_norms else 0),
            token_bits=8 if token_norms else 0,
        )
        self.groups, self.channels = groups, d
        self.directions = vectors.flip(-1).mT
        self.mean = self.mean.reshape(*groups, d)
        self._metric, self._counted = S, counted
        self._tokens, self._unit = X, X.new_ones(()) if token_norms else unit

    def coefficients(self, most: int) -> Tensor:
        """Coefficients (groups, d, N) of at most ``most`` evenly spread tokens, without a metric or norms."""
        stride = math.ceil(self._tokens.shape[1] / most)
        return self.directions @ self._tokens[:, ::stride].mT * self._unit

    def state(self, bits: Tensor, coherence: Tensor | None = None) -> TransformState:
        """The state of these directions at ``bits`` (groups, d), whole numbers from 0 to 8.

        Args:
            bits: of the directions.
            coherence: (groups,) as in :class:`Sensitivity`; None is 1.
        """
        flat, count, d = self._tokens.shape
        dtype = self._tokens.dtype
        owner, place = bits.nonzero(as_tuple=True)
        order = bits[owner, place].argsort(descending=True, stable=True)
        owner, place = owner[order], place[order]
        rows = (bits[owner, place][:, None] > torch.arange(MAX_BITS, device=bits.device)).sum(0)
        S = self._metric
        basis = rounded_rows((self.directions if S is None else self.directions @ S)[owner, place])
        synthesis, gains = None, None
        if S is not None:
            E, _, slots = bases(basis, basis, owner, flat, dtype)
            A = _regression(E, self._covariance).flatten(0, 1)[slots]
            synthesis, gains = rounded_rows(A), A.norm(dim=-1)
        opened = bases(basis, synthesis, owner, flat, dtype)
        stride = math.ceil(count / _MOST_TOKENS_FOR_SCALES)
        coefficients = (opened.analysis @ self._tokens[:, ::stride].mT).flatten(0, 1)[opened.slots]
        counted = self._counted.expand(flat, count, 1)[:, ::stride, 0][owner]
        scale = _scales(coefficients, counted, self._unit, rows.tolist())
        return TransformState(
            self.groups,
            d,
            self.mean,
            basis,
            synthesis,
            owner.to(torch.int16),
            scale,
            None if gains is None else (scale * gains).to(torch.bfloat16),
            rows.to("cpu", torch.int32),
            None if self._norm is None else self._norm.reshape(self.groups),
            None if coherence is None else coherence.to(torch.bfloat16).reshape(self.groups),
        )


def fit_transform(
    X: Tensor, groups: tuple[int, ...], budget: Budget, metric: Tensor | None = None, weights: Tensor | None = None
) -> TransformState:
    """Fits the state of a transform codec.

    Args:
        X: as for :class:`TransformFit`.
        groups: as for :class:`TransformFit`.
        budget: shared by the last dimension of groups, separate for those before.
        metric: as for :class:`TransformFit`.
        weights: as for :class:`TransformFit`.

    Raises:
        ValueError: there are more groups than a state can number, or the budget cannot be met.
    """
    fit = TransformFit(X, groups, metric, weights)
    return fit.state(_allocate(fit.spectrum, groups, budget))


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


def _allocate(spectrum: Spectrum, groups: tuple[int, ...], budget: Budget) -> Tensor:
    """Bits (groups, d) of the directions."""
    variances = spectrum.variances
    d = variances.shape[-1]
    served = spectrum.tokens if budget.tokens is None else budget.tokens
    sharing = groups[-1] if groups else 1
    pools = variances.reshape(-1, sharing * d)
    if budget.error is not None:
        energy = spectrum.energies.reshape(-1, sharing).sum(-1)
        least_error = (
            (distortions()[-1] * pools.sum(-1) / energy.clamp_min(torch.finfo(energy.dtype).tiny)).sqrt().max()
        )
        if budget.error < least_error:
            raise ValueError(
                f"error must be at least {float(least_error):.4g} here, what {MAX_BITS} bits in every direction leave, "
                f"got {budget.error}"
            )
        allowed = budget.error**2 * energy
        plane, direction = spectrum.plane_bits(served), spectrum.direction_bits()
        bits = allocate_bits(pools, distortion=allowed, plane_cost=plane, direction_cost=direction)
        return bits.reshape(variances.shape)
    assert budget.bits_per_element is not None
    fixed = spectrum.shared_bits(served) / len(pools)
    held = f"the means and one direction at one bit, when {served} tokens of {sharing} × {d} channels"
    bits = allocate_budget(pools, budget.bits_per_element, spectrum, served, fixed, held)
    return bits.reshape(variances.shape)


def allocate_budget(
    pools: Tensor,
    bits_per_element: float,
    spectrum: Spectrum,
    served: int,
    fixed: float,
    held: str,
    remaining: Tensor | None = None,
) -> Tensor:
    """Bits of directions (..., n) that share a budget, of which a part is fixed.

    Args:
        pools: as the variances of :func:`allocate_bits`.
        bits_per_element: over ``served`` tokens, everything counted.
        spectrum: what a plane and a direction cost.
        served: tokens of each group.
        fixed: bits stored whatever the allocation.
        held: what the least budget pays for, for the message.
        remaining: as for :func:`allocate_bits`.

    Raises:
        ValueError: the budget does not pay for that.
    """
    plane, direction, elements = spectrum.plane_bits(served), spectrum.direction_bits(), served * pools.shape[-1]
    least = (fixed + plane + direction) / elements
    if bits_per_element < least:
        raise ValueError(
            f"bits_per_element must be at least {least:.4g} here, for {held} are served, got {bits_per_element}"
        )
    budget = bits_per_element * elements - fixed
    return allocate_bits(pools, budget=budget, plane_cost=plane, direction_cost=direction, remaining=remaining)


def rounded_rows(rows: Tensor) -> Tensor:
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
