"""Entropy-coded form of a pooled code: uniform quantisation with one step for the whole cache, and streams."""

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
    check_fits,
    computed_in,
    nbytes,
    no_grad_no_autocast,
)
from eigenscope.kv.codecs.transform_state import bases, block_factors, coefficients

LARGEST = 4095  # of the integers
_DEAD_ZONE = 0.03  # integers are rounded towards zero by so much: it saves more bits than error


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
        places: (*batch,) int64 on the CPU, the number of the stream of each.
    """

    streams: tuple[Tensor, ...]
    places: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Selects or repeats sequences; streams that are no longer used go."""
        places = function(self.places).cpu()
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
        opened = bases(state.basis, None, state.owner, math.prod(state.groups), dtype)
        centred = (X.to(dtype) - state.mean.to(dtype)[..., None, :]) / state.step.to(dtype)[..., None, None]
        c = coefficients(centred, opened, state.groups)
        widths = _widths(state)
        limits = torch.cat([c.new_empty(0), *(c.new_full((count,), limit) for _, count, limit in widths)])
        n = quantised(c).clamp(-limits[:, None], limits[:, None]).to(torch.int32)
        batch = n.shape[:-2]
        rows = n.reshape(batch.numel(), *n.shape[-2:]).cpu()
        streams = tuple(_written(row, widths, state) for row in rows)
        return EntropyCode(X.shape[-2], X.dtype, streams, torch.arange(len(streams)).reshape(batch))

    @no_grad_no_autocast
    def factors(self, code: Code, fitted: Fitted) -> Factors:  # noqa: D102
        state = _checked(fitted)
        if not isinstance(code, EntropyCode):
            raise ValueError(f"code must be an EntropyCode, got {type(code).__name__}")
        dtype, device = computed_in(code.dtype), state.basis.device
        widths, batch = _widths(state), code.places.shape
        read = [_read(stream, widths, state, code.tokens) for stream in code.streams]
        n = torch.stack(read)[code.places.flatten()].to(device, dtype).reshape(*batch, len(state.owner), code.tokens)
        opened = bases(state.basis, None, state.owner, math.prod(state.groups), dtype)
        return block_factors(n * state.gain.to(dtype)[:, None], opened, state.groups, state.mean)

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


def quantised(c: Tensor) -> Tensor:
    """The integers nearest to c, but for a dead zone about zero."""
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
