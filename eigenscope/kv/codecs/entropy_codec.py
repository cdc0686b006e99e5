"""Entropy-coded form of a pooled code: uniform quantisation with one step for the whole cache, and range coding."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import (
    Code,
    Codec,
    Factors,
    Fitted,
    FittedKV,
    check_fits,
    computed_in,
    nbytes,
    no_grad_no_autocast,
)
from eigenscope.kv.codecs.sensitivities import Sensitivity
from eigenscope.kv.codecs.transform_fit import TransformFit, rounded_rows
from eigenscope.kv.codecs.transform_state import bases

LARGEST = 127  # of the integers
_TRIED = 256  # tokens of each group from which rates are estimated
_CLASSES = 40  # of directions, by deviation over step: half an octave each would do, a quarter costs nothing more
_FINEST = 16  # classes below a deviation of one step
_DEAD_ZONE = 0.06  # integers are rounded towards zero by so much: it saves more bits than error


@dataclass(frozen=True, eq=False)
class EntropyState(Fitted):
    """What an entropy-coded side of one layer has learned.

    Attributes:
        mean: (*groups, d) bfloat16, subtracted before coding.
        basis: (K, d) int8, directions up to their length, in the order of their classes.
        owner: (K,) int16, the flat index of the group.
        kind: (K,) uint8, the class of a direction, which says how its integers are distributed.
        step: (*groups,) float32, what a coefficient is divided by.
        gain: (K,) bfloat16, what an integer is multiplied by.
        tables: (classes, 255) int32, counts of −127, …, 127 of each class, one tensor for the whole cache.
    """

    mean: Tensor
    basis: Tensor
    owner: Tensor
    kind: Tensor
    step: Tensor
    gain: Tensor
    tables: Tensor


@dataclass(frozen=True, eq=False)
class EntropyCode(Code):
    """Streams of a range coder, one for each sequence and block.

    Attributes:
        streams: (uint8,) on the CPU by their number.
        places: (*batch,) int64, the number of the stream of each.
        device: of what was encoded.
    """

    streams: tuple[Tensor, ...]
    places: Tensor
    device: torch.device

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Selects or repeats sequences; streams that are no longer used go."""
        places = function(self.places)
        used, places_now = places.unique(return_inverse=True)
        return replace(self, streams=tuple(self.streams[i] for i in used.tolist()), places=places_now)

    def joined(self, other: Self) -> Self:  # noqa: D102
        places = torch.cat([self.places, other.places + len(self.streams)], 1)
        return replace(self, streams=self.streams + other.streams, places=places)


def range_coder() -> Any:
    """The library of the entropy coder.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            f"entropy coding needs constriction, which `pip install eigenscope[entropy]` brings: {error}"
        ) from error
    return constriction


@dataclass(frozen=True)
class EntropyCoder(Codec):
    """Encodes and decodes by the state of an entropy-coded fit; streams are written and read on the CPU."""

    @no_grad_no_autocast
    def encode(self, X: Tensor, fitted: Fitted) -> EntropyCode:  # noqa: D102
        state = _checked(fitted)
        check_fits(X, state)
        dtype = computed_in(X.dtype)
        batch = X.shape[: X.ndim - 2 - len(state.groups)]
        groups = math.prod(state.groups)
        analysis, _, slots = bases(state.basis, None, state.owner, groups, dtype)
        centred = (X.to(dtype) - state.mean.to(dtype)[..., None, :]) / state.step.to(dtype)[..., None, None]
        c = (analysis @ centred.reshape(*batch, groups, *X.shape[-2:]).mT).flatten(-3, -2).index_select(-2, slots)
        widths = _widths(state)
        limits = torch.cat([c.new_full((count,), limit) for _, count, limit in widths]) if widths else c.new_empty(0)
        n = _quantised(c).clamp(-limits[:, None], limits[:, None]).to(torch.int32)
        rows = n.reshape(-1, *n.shape[-2:]).cpu()
        streams = tuple(_written(row, widths, state) for row in rows)
        return EntropyCode(X.shape[-2], X.dtype, streams, torch.arange(len(streams)).reshape(batch), X.device)

    @no_grad_no_autocast
    def factors(self, code: Code, fitted: Fitted) -> Factors:  # noqa: D102
        state = _checked(fitted)
        if not isinstance(code, EntropyCode):
            raise ValueError(f"code must be an EntropyCode, got {type(code).__name__}")
        dtype, device = computed_in(code.dtype), state.basis.device
        widths, batch, groups = _widths(state), code.places.shape, math.prod(state.groups)
        read = [_read(stream, widths, state, code.tokens) for stream in code.streams]
        n = torch.stack(read)[code.places.flatten()].to(device, dtype).reshape(*batch, len(state.owner), code.tokens)
        _, synthesis, slots = bases(state.basis, None, state.owner, groups, dtype)
        k = synthesis.shape[-2]
        levels = n * state.gain.to(dtype)[:, None]
        C = levels.new_zeros(*batch, groups * k, code.tokens).index_copy(-2, slots, levels)
        return Factors(
            C.reshape(*batch, *state.groups, k, code.tokens).mT,
            synthesis.reshape(*state.groups, k, state.channels),
            state.mean.to(dtype),
        )

    def bytes_by_group(self, code: Code, fitted: Fitted) -> Tensor:
        """As for any codec; the bytes of a stream are shared out by the entropies of the classes in it."""
        state = _checked(fitted)
        if not isinstance(code, EntropyCode):
            raise ValueError(f"code must be an EntropyCode, got {type(code).__name__}")
        groups = math.prod(state.groups)
        share = torch.zeros(groups, dtype=torch.float64)
        owner = state.owner.to("cpu", torch.int64)
        share.index_add_(0, owner, _entropies(state.tables.cpu())[state.kind.cpu().long()])
        share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / groups)
        fixed = nbytes(state.mean, state.step, state.tables, code.places) / groups
        rows = torch.bincount(owner, minlength=groups) * (state.channels + 2 + 1 + 2)
        return (share * nbytes(code.streams) + fixed + rows).reshape(state.groups)


def _checked(fitted: Fitted) -> EntropyState:
    if not isinstance(fitted, EntropyState):
        raise ValueError(f"fitted must be that of an entropy-coded fit, got {type(fitted).__name__}")
    return fitted


def _quantised(c: Tensor) -> Tensor:
    return c.sign() * (c.abs() + 0.5 - _DEAD_ZONE).floor().clamp_min(0)


def _widths(state: EntropyState) -> list[tuple[int, int, int]]:
    """Of each class in use: its number, how many directions are of it, and its largest integer."""
    counts = torch.bincount(state.kind.cpu().long(), minlength=1).tolist()
    limits = _limits(state.tables.cpu())
    return [(kind, count, limits[kind]) for kind, count in enumerate(counts) if count]


def _limits(tables: Tensor) -> list[int]:
    seen = (tables > 0) | (tables.flip(-1) > 0)
    distance = (torch.arange(2 * LARGEST + 1) - LARGEST).abs()
    limits: list[int] = (seen * distance).amax(-1).tolist()
    return limits


def _model(tables: Tensor, kind: int, limit: int) -> Any:
    counts = tables[kind, LARGEST - limit : LARGEST + limit + 1].double()
    counts = counts.clamp_min(0.25)
    return range_coder().stream.model.Categorical((counts / counts.sum()).numpy(), perfect=False)


def _written(row: Tensor, widths: Sequence[tuple[int, int, int]], state: EntropyState) -> Tensor:
    coder, stop = range_coder().stream.stack.AnsCoder(), len(row)
    tables = state.tables.cpu()
    for kind, count, limit in reversed(widths):  # a stack: what is written last is read first
        symbols = (row[stop - count : stop] + limit).flatten().numpy()
        if limit:
            coder.encode_reverse(symbols, _model(tables, kind, limit))
        stop -= count
    return torch.from_numpy(coder.get_compressed().view("uint8").copy())


def _read(stream: Tensor, widths: Sequence[tuple[int, int, int]], state: EntropyState, tokens: int) -> Tensor:
    coder = range_coder().stream.stack.AnsCoder(stream.numpy().view("uint32").copy())
    tables, parts = state.tables.cpu(), [torch.empty(0, tokens, dtype=torch.int32)]
    for kind, count, limit in widths:
        if limit:
            symbols = coder.decode(_model(tables, kind, limit), count * tokens)
            parts.append(torch.from_numpy(symbols).reshape(count, tokens) - limit)
        else:
            parts.append(torch.zeros(count, tokens, dtype=torch.int32))
    return torch.cat(parts)


def _entropies(tables: Tensor) -> Tensor:
    """Bits of an integer of each class."""
    p = tables.double()
    p = p / p.sum(-1, keepdim=True).clamp_min(1)
    return -torch.where(p > 0, p * p.clamp_min(1e-300).log2(), 0).sum(-1)


@dataclass
class _Trial:
    """Integers of some tokens of all directions of the cache at one step."""

    kept: Tensor  # (directions,) bool
    kind: Tensor
    gain: Tensor  # over the step
    tables: Tensor
    bits: float


def fit_entropy_coded(
    fits: Sequence[TransformFit], sites: Sequence[Sensitivity], bits_per_element: float, served: int
) -> list[EntropyState]:
    """States of all layers and sides, at the step that meets a budget.

    A coefficient c of a site of weight w is coded as the integer nearest to c √w / Δ, with one Δ for the cache, which
    spreads the error by what it costs; directions whose bits cost more than they bring are left out.

    Args:
        fits: keys and values of each layer in turn.
        sites: their sensitivities.
        bits_per_element: of everything stored.
        served: tokens of each group.
    """
    coefficients, weights, coherences, sizes = [], [], [], []
    for fit, site in zip(fits, sites, strict=True):
        own = fit.coefficients(_TRIED)
        scale = site.weight.to(own).clamp_min(torch.finfo(own.dtype).tiny).sqrt()
        coefficients.append((own * scale[:, None, None]).flatten(0, 1))
        weights.append(scale)
        coherences.append(site.coherence.to(own).repeat_interleave(fit.channels))
        sizes.append(len(coefficients[-1]))
    c, rho = torch.cat(coefficients), torch.cat(coherences)
    elements = served * len(c)
    shared = sum(16 * fit.channels * len(fit.spectrum.variances) + 32 * len(fit.spectrum.variances) for fit in fits)
    row = 8 * fits[0].channels + 16 + 8 + 16

    def at(step: float) -> _Trial:
        return _tried(c / step, rho, row / served)

    def bits(trial: _Trial) -> float:
        return shared + trial.bits * served + int(trial.kept.sum()) * row + 32 * trial.tables.count_nonzero().item()

    low, high = math.log(float(c.std()) * 1e-4 + 1e-30), math.log(float(c.abs().max()) + 1e-30)
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if bits(at(math.exp(middle))) > bits_per_element * elements else (low, middle)
    step = math.exp(high)
    trial = at(step)
    if bits(trial) > bits_per_element * elements:
        raise ValueError(
            f"bits_per_element must be at least {bits(trial) / elements:.4g} here, for the means and a table, when "
            f"{served} tokens are served, got {bits_per_element}"
        )
    states = []
    begin = 0
    for fit, scale, size in zip(fits, weights, sizes, strict=True):
        part = slice(begin, begin + size)
        begin += size
        kept, kind = trial.kept[part].reshape(-1, fit.channels), trial.kind[part].reshape(-1, fit.channels)
        gain = trial.gain[part].reshape(-1, fit.channels) * (step / scale)[:, None]
        owner, place = kept.nonzero(as_tuple=True)
        order = kind[owner, place].argsort(stable=True)
        owner, place = owner[order], place[order]
        states.append(
            EntropyState(
                fit.groups,
                fit.channels,
                fit.mean,
                rounded_rows(fit.directions[owner, place]),
                owner.to(torch.int16),
                kind[owner, place].to(torch.uint8),
                (step / scale).reshape(fit.groups).float(),
                gain[owner, place].to(torch.bfloat16),
                trial.tables,
            )
        )
    return states


def _tried(c: Tensor, rho: Tensor, row_bits: float) -> _Trial:
    """Integers of coefficients (directions, tokens) in units of the step, and what they would cost."""
    n = _quantised(c).clamp(-LARGEST, LARGEST)
    square = c.square().mean(-1)
    kind = (4 * square.clamp_min(1e-30).log2() / 2 + _FINEST).round().clamp(0, _CLASSES - 1).long()
    # n = κ c + noise: the gain a of least cost ρ (1 − a κ)² λ + a² ν, as in `sensitivities.remaining`
    kappa = (c * n).mean(-1) / square.clamp_min(1e-30)
    noise = (n.square().mean(-1) - kappa.square() * square).clamp_min(0)
    gain = rho * square * kappa / (rho * square * kappa.square() + noise).clamp_min(1e-30)
    left = rho * square * (1 - gain * kappa).square() + gain.square() * noise
    rate = _rates(n, kind)
    worth = math.log(2) / 6  # of a bit, in squared steps: the slope of a uniform quantiser's distortion at high rates
    kept = (rho * square - left > worth * (rate + row_bits)) & (n != 0).any(-1)
    counts = torch.zeros(_CLASSES, 2 * LARGEST + 1, dtype=torch.int64)
    at = (kind[kept, None] * (2 * LARGEST + 1) + n[kept].long() + LARGEST).flatten().cpu()
    counts.view(-1).index_add_(0, at, torch.ones_like(at))
    tables = (counts + counts.flip(-1)).to(torch.int32)  # symmetric
    return _Trial(kept, kind, gain, tables, float(rate[kept].sum()))


def _rates(n: Tensor, kind: Tensor) -> Tensor:
    """Bits a token of each direction, by the distribution of its class."""
    size = 2 * LARGEST + 1
    at = (kind[:, None] * size + n.long() + LARGEST).cpu()
    counts = torch.bincount(at.flatten(), minlength=_CLASSES * size).reshape(_CLASSES, size).double()
    counts = counts + counts.flip(-1)
    bits = -(counts / counts.sum(-1, keepdim=True).clamp_min(1)).clamp_min(1e-300).log2()
    rates: Tensor = bits.flatten()[at].mean(-1).to(n)
    return rates


def split_pairs(states: Sequence[Fitted]) -> list[FittedKV]:
    """Keys and values in turn as pairs."""
    return [FittedKV(*pair) for pair in itertools.batched(states, 2)]
