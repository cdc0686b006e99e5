"""Fitting of the entropy-coded form: the step that meets a budget, the directions worth their bits, and tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import nbytes
from eigenscope.kv.codecs.entropy_codec import LARGEST, EntropyState, quantised
from eigenscope.kv.codecs.sensitivities import Sensitivity
from eigenscope.kv.codecs.transform_fit import TransformFit, rounded_rows

_TRIED = 256  # tokens of each group from which rates are estimated
_CLASSES_PER_OCTAVE = 2  # of the variance over the squared step: four of the deviation
_FINEST = 10  # classes below a deviation of one step
_STEP_SLOPE = math.log(2) / 6  # squared steps that a bit saves, where a uniform quantiser's error is step²/12
_MARGIN = 0.997  # of the budget, since rates are estimated
_HALVINGS = 14  # of the range of steps


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
    n = quantised(c).clamp(-LARGEST, LARGEST)
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
