"""Pooled codec: one budget of bits for the keys and values of all layers and heads of a cache."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import Fitted, FittedKV, KVCodec, check_tokens, check_whole, no_grad_no_autocast
from eigenscope.kv.codecs.entropy_codec import EntropyCoder
from eigenscope.kv.codecs.entropy_fit import fit_entropy_coded
from eigenscope.kv.codecs.sensitivities import Sensitivities, remaining
from eigenscope.kv.codecs.transform_codec import PlaneCoder
from eigenscope.kv.codecs.transform_fit import TransformFit, allocate_budget


@dataclass(frozen=True)
class PooledCodec:
    """Spends one budget over keys and values, layers and heads, by what an error in each costs the predictions.

    The code of each layer's keys and values is that of :class:`TransformCodec`. Bits go to where variance times
    sensitivity is largest, in one reverse water-filling over all directions of the cache: layers differ more than
    tenfold in what the same error does to the predictions (:class:`Sensitivities`). Each token of the values is divided
    by its norm, so that small tokens, which attention may read as well as large ones, have small errors.

    Args:
        bits_per_element: of everything that is stored for a coded element, bases, means and norms included, over keys
            and values of all layers.
        tokens: as for :class:`TransformCodec`.

    Raises:
        ValueError: ``bits_per_element`` is not above 0 and at most 16, or ``tokens`` is not a whole number above 0.
    """

    bits_per_element: float = 2.6
    tokens: int | None = None
    entropy_coded: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.bits_per_element <= 16:
            raise ValueError(f"bits_per_element must be above 0 and at most 16, got {self.bits_per_element}")
        check_whole(tokens=self.tokens)
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")

    @property
    def coders(self) -> KVCodec:
        """What encodes and decodes by the states that :meth:`fit` returns."""
        return KVCodec.of(EntropyCoder() if self.entropy_coded else PlaneCoder())

    @no_grad_no_autocast
    def fit(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        sensitivities: Sensitivities | None = None,
    ) -> tuple[list[FittedKV], Sensitivities]:
        """Learns bases, bits and scales of all layers.

        Args:
            keys: of each layer, (*batch, heads, T, d) floating, before rotation where the model rotates them.
            values: of each layer, (*batch, heads, T, d).
            sensitivities: of each layer and head; None: :meth:`Sensitivities.of_energies`.

        Returns:
            The states of each layer, and the sensitivities that were used.

        Raises:
            ValueError: keys or values of a layer are not as above, or have other numbers of tokens or channels than
                those of the first; the sensitivities are of other layers or heads; the budget is below what means,
                norms and one direction cost.
        """
        fits = [
            TransformFit(
                _checked(X, name, layer), (X.shape[-3],), token_norms=name == "values" and not self.entropy_coded
            )
            for layer, pair in enumerate(zip(keys, values, strict=True))
            for name, X in zip(FittedKV._fields, pair, strict=True)
        ]
        first = fits[0]
        for number, fit in enumerate(fits):
            shape, expected = (fit.spectrum.tokens, fit.channels), (first.spectrum.tokens, first.channels)
            if shape != expected:
                raise ValueError(
                    f"one budget needs layers of one shape: {FittedKV._fields[number % 2]} of layer {number // 2} have "
                    f"{shape[0]} tokens of {shape[1]} channels, keys of layer 0 {expected[0]} of {expected[1]}; "
                    "a KVCodec spends bits layer by layer"
                )
        if sensitivities is None:
            sensitivities = Sensitivities.of_energies(
                *([fit.spectrum.variances.sum(-1) for fit in fits[k::2]] for k in (0, 1))
            )
        sensitivities.check([fit.groups[0] for fit in fits[::2]])
        sites = [site for pair in zip(sensitivities.keys, sensitivities.values, strict=True) for site in pair]
        served = first.spectrum.tokens if self.tokens is None else self.tokens
        if self.entropy_coded:
            return _pairs(fit_entropy_coded(fits, sites, self.bits_per_element, served)), sensitivities
        costs, kept = [], []
        for fit, site in zip(fits, sites, strict=True):
            variances = fit.spectrum.variances
            costs.append((variances * site.weight.to(variances)[:, None]).flatten())
            kept.append(remaining(site.coherence.to(variances)).repeat_interleave(variances.shape[-1], 0))
        fixed = sum(fit.spectrum.shared_bits(served) for fit in fits)
        held = f"means, norms and one direction at one bit, when {served} tokens of {len(keys)} layers"
        bits = allocate_budget(
            torch.cat(costs), self.bits_per_element, first.spectrum, served, fixed, held, torch.cat(kept)
        )
        parts = torch.split(bits, [len(part) for part in costs])
        states = [
            fit.state(part.reshape(fit.spectrum.variances.shape), site.coherence)
            for fit, part, site in zip(fits, parts, sites, strict=True)
        ]
        return _pairs(states), sensitivities


def _checked(X: Tensor, name: str, layer: int) -> Tensor:
    try:
        check_tokens(X, 1)
    except ValueError as error:
        raise ValueError(f"{name} of layer {layer}: {error}") from error
    return X


def _pairs(states: Sequence[Fitted]) -> list[FittedKV]:
    """Keys and values in turn, layer by layer."""
    return [FittedKV(*pair) for pair in itertools.batched(states, 2)]
