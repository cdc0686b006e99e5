"""Entropy-coded form of a pooled code: uniform quantisation with one step for the whole cache, and streams."""

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

LARGEST = 4095  # of the integers
_TRIED = 256  # tokens of each group from which rates are estimated
_CLASSES_PER_OCTAVE = 2  # of the variance over the squared step: four of the deviation
_FINEST = 10  # classes below a deviation of one step
_DEAD_ZONE = 0.03  # integers are rounded towards zero by so much: it saves more bits than error
_STEP_SLOPE = math.log(2) / 6  # squared steps that a bit saves, where a uniform quantiser's error is step²/12
_MARGIN = 0.997  # of the budget, since rates are estimated
_HALVINGS = 14  # of the range of steps


@dataclass(frozen=True, eq=False)
class EntropyState(Fitted):
    """What an entropy-coded side of one layer has learned.

    Attributes:
        mean: (*groups, d) bfloat16, subtracted before coding.
        basis: (K, d) int8, directions up to their length, in the order of their classes.
        owner: (K,) int16, the flat index of the group.
        kind: (K,) uint8, the class of a direction, which says how its integers are distributed; ascending.
        step: (*groups,) float32, what a coefficient is divided by.
        gain: (K,) bfloat16, what an integer is multiplied by.
        limits: (classes,) int16, the largest absolute value of an integer of each class.
        tables: (Σ limits + classes,) int16, class by class how often an integer has the absolute value 0, 1, …. One
            tensor for the whole cache, like ``limits``, on the CPU: streams are written and read there.
    """

    mean: Tensor
    basis: Tensor
    owner: Tensor
    kind: Tensor
    step: Tensor
    gain: Tensor
    limits: Tensor
    tables: Tensor


@dataclass(frozen=True, eq=False)
class EntropyCode(Code):
    """Streams of a coder of asymmetric numeral systems (Duda 2009), one for each sequence and block.

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
        used, places_now = torch.unique(places, return_inverse=True)
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
        limits = torch.cat([c.new_empty(0), *(c.new_full((count,), limit) for _, count, limit in widths)])
        n = _quantised(c).clamp(-limits[:, None], limits[:, None]).to(torch.int32)
        rows = n.reshape(math.prod(batch), *n.shape[-2:]).cpu()
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
        share.index_add_(0, owner, _entropies(_rows(state))[state.kind.cpu().long()])
        share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / groups)
        fixed = nbytes(state.mean, state.step, state.limits, state.tables, code.places) / groups
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
    counts, limits = torch.bincount(state.kind.cpu().long()).tolist(), state.limits.tolist()
    return [(kind, count, limits[kind]) for kind, count in enumerate(counts) if count]


def _rows(state: EntropyState) -> tuple[Tensor, ...]:
    """The table of each class."""
    return torch.split(state.tables.cpu(), [limit + 1 for limit in state.limits.tolist()])


def _model(table: Tensor) -> Any:
    """The distribution of the integers −limit, …, limit of a class, numbered from 0."""
    half = table.double()
    half[1:] /= 2  # of either sign
    both = torch.cat([half[1:].flip(0), half])
    return range_coder().stream.model.Categorical((both / both.sum()).numpy(), perfect=False)


def _written(row: Tensor, widths: Sequence[tuple[int, int, int]], state: EntropyState) -> Tensor:
    coder, stop, tables = range_coder().stream.stack.AnsCoder(), len(row), _rows(state)
    for kind, count, limit in reversed(widths):  # a stack: what is written last is read first
        symbols = (row[stop - count : stop] + limit).flatten().numpy()
        if limit:
            coder.encode_reverse(symbols, _model(tables[kind]))
        stop -= count
    return torch.from_numpy(coder.get_compressed().view("uint8").copy())


def _read(stream: Tensor, widths: Sequence[tuple[int, int, int]], state: EntropyState, tokens: int) -> Tensor:
    coder = range_coder().stream.stack.AnsCoder(stream.numpy().view("uint32").copy())
    parts, tables = [torch.empty(0, tokens, dtype=torch.int32)], _rows(state)
    for kind, count, limit in widths:
        if limit:
            symbols = coder.decode(_model(tables[kind]), count * tokens)
            parts.append(torch.from_numpy(symbols).reshape(count, tokens) - limit)
        else:
            parts.append(torch.zeros(count, tokens, dtype=torch.int32))
    return torch.cat(parts)


def _entropies(tables: Sequence[Tensor]) -> Tensor:
    """Bits of an integer of each class."""
    shares = [table.double() / table.double().sum() for table in tables]
    bits = [float(torch.special.entr(p).sum() / math.log(2) + 1 - p[0]) for p in shares]  # and the sign
    return torch.tensor(bits, dtype=torch.float64)


@dataclass
class _Trial:
    """Integers of some tokens of all directions of the cache at one step.

    Attributes:
        kept: (directions,) bool, which are worth their bits.
        kind: (directions,) class, of those kept.
        gain: (directions,) what an integer stands for, in steps.
        limits: as in :class:`EntropyState`.
        tables: as in :class:`EntropyState`.
        bits: of a token, all directions.
    """

    kept: Tensor
    kind: Tensor
    gain: Tensor
    limits: Tensor
    tables: Tensor
    bits: float


def fit_entropy_coded(
    fits: Sequence[TransformFit], sites: Sequence[Sensitivity], bits_per_element: float, served: int
) -> list[EntropyState]:
    """States of all layers and sides, at the step that meets a budget.

    A coefficient c of a site of weight w is coded as the integer nearest to c √w / Δ, with one Δ for the cache, which
    spreads the error by what it costs; directions whose bits cost more than they save are left out. Coherences are not
    looked at: at these fine steps they were seen to bring nothing.

    Args:
        fits: keys and values of each layer in turn.
        sites: their sensitivities.
        bits_per_element: of everything stored.
        served: tokens of each group.
    """
    coefficients, weights = [], []
    for fit, site in zip(fits, sites, strict=True):
        own = fit.coefficients(_TRIED).double()
        scale = site.weight.to(own).clamp_min(torch.finfo(own.dtype).tiny).sqrt()
        coefficients.append((own * scale[:, None, None]).flatten(0, 1))
        weights.append(scale)
    c, sizes = torch.cat(coefficients), [len(part) for part in coefficients]
    largest = float(c.abs().max()) or 1.0
    elements = served * len(c)
    shared = sum(16 * fit.channels * len(fit.spectrum.variances) + 32 * len(fit.spectrum.variances) for fit in fits)
    row = 8 * fits[0].channels + 16 + 8 + 16

    def at(step: float) -> _Trial:
        return _tried(c / step, row / served)

    allowed = _MARGIN * bits_per_element * elements

    def bits(trial: _Trial) -> float:
        return shared + trial.bits * served + int(trial.kept.sum()) * row + 8 * nbytes(trial.tables, trial.limits)

    fine, coarse = largest / LARGEST, 4 * largest  # a finer one would cut off, at a coarser one all is zero
    for _ in range(_HALVINGS):
        step = math.sqrt(fine * coarse)
        fine, coarse = (step, coarse) if bits(at(step)) > allowed else (fine, step)
    step = coarse
    trial = at(step)
    if bits(trial) > allowed:
        raise ValueError(
            f"bits_per_element must be at least {bits(trial) / elements:.4g} here, for the means and a table, when "
            f"{served} tokens are served, got {bits_per_element}"
        )
    states = []
    begin = 0
    for fit, scale, size in zip(fits, weights, sizes, strict=True):
        part = slice(begin, begin + size)
        begin += size
        kept, kind, gain = (x[part].reshape(-1, fit.channels) for x in (trial.kept, trial.kind, trial.gain))
        gain = gain * (step / scale)[:, None]
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
                trial.limits,
                trial.tables,
            )
        )
    return states


def _tried(c: Tensor, row_bits: float) -> _Trial:
    """Integers of coefficients (directions, tokens) in steps, and their cost beside ``row_bits`` of a direction."""
    n = _quantised(c).clamp(-LARGEST, LARGEST)
    square, cross, size = c.square().mean(-1), (c * n).mean(-1), n.square().mean(-1)
    gain = cross / size.clamp_min(torch.finfo(c.dtype).tiny)  # least squares
    kind = (square.clamp_min(2.0**-32).log2() * _CLASSES_PER_OCTAVE).round().clamp_min(-_FINEST).long() + _FINEST
    counts = _counts(n, kind)
    rate = _rates(n, kind, counts)
    saved = gain * cross  # of the squared error
    kept = saved > _STEP_SLOPE * (rate + row_bits)
    if not kept.any():
        return _Trial(kept, kind, gain, *2 * (torch.zeros(0, dtype=torch.int16),), 0.0)
    _, among = torch.unique(kind[kept], return_inverse=True)
    kind = torch.zeros_like(kind).masked_scatter(kept, among)
    return _Trial(kept, kind, gain, *_tables(_counts(n[kept], among)), float(rate[kept].sum()))


def _counts(n: Tensor, kind: Tensor) -> Tensor:
    """(classes, L + 1) how often integers (directions, tokens) of each class have an absolute value."""
    size, classes = int(n.abs().max()) + 1, int(kind.max()) + 1
    at = (kind[:, None] * size + n.abs().long()).flatten()
    return torch.bincount(at, minlength=classes * size).reshape(classes, size)


def _rates(n: Tensor, kind: Tensor, counts: Tensor) -> Tensor:
    """Bits a token of each direction, by the distribution of its class."""
    bits = -(counts / counts.sum(-1, keepdim=True).clamp_min(1)).double().clamp_min(1e-300).log2()
    bits[:, 1:] += 1
    size = n.abs().long()
    rates: Tensor = bits.flatten()[kind[:, None] * bits.shape[-1] + size].mean(-1).to(n)
    return rates


def _tables(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Limits and tables as stored: a quarter beyond the largest that was seen, 1 where none was, below 2^15."""
    seen = ((counts > 0) * torch.arange(counts.shape[-1], device=counts.device)).amax(-1)
    limits = (seen + seen // 4 + 1).clamp_max(LARGEST)
    scaled = (counts * (32767 / counts.amax(-1, keepdim=True))).round().clamp(1, 32767)
    scaled = torch.nn.functional.pad(scaled, (0, int(limits.max()) + 1 - counts.shape[-1]), value=1)
    inside = torch.arange(scaled.shape[-1], device=counts.device) <= limits[:, None]
    return limits.to("cpu", torch.int16), scaled[inside].to("cpu", torch.int16)


def split_pairs(states: Sequence[Fitted]) -> list[FittedKV]:
    """Keys and values in turn as pairs."""
    return [FittedKV(*pair) for pair in itertools.batched(states, 2)]
