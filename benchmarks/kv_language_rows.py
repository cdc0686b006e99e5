"""Rows of the KV-cache benchmark on a language model: named ways of compressing an exact prefix.

A row is a function of a :class:`Prefix`, which holds the model, the tokens and the exact states; what it returns is all
that is measured. To add a way of making a ``SpectralCache``, hand it to :func:`through_cache`.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from kv_language_model import Compressed, Prefix
from rotated_lloyd_max import RotatedLloydMax

from eigenscope.kv import (
    Codec,
    Exact,
    KVCodec,
    LowRankInt8,
    Sensitivities,
    SpectralCache,
    TransformCodec,
    UniformInt,
    measure_sensitivities,
)
from eigenscope.kv.cache.measured_sensitivities import PREDICTIONS
from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys

Row = Callable[[Prefix], Compressed]
BLOCK = 512
BUDGETS = (4.15, 3.15, 2.65, 2.25, 1.9)


def through_cache(fresh: Callable[[Prefix], SpectralCache], prefix: Prefix) -> Compressed:
    """The prefix put into a new cache in one call, and read again.

    Raises:
        ValueError: the cache has compressed nothing.
    """
    cache = fresh(prefix)
    for layer, (keys, values) in enumerate(prefix.states):
        cache.update(keys, values, layer)
    report = cache.report()
    if not report.codes:
        raise ValueError(f"the cache must compress the prefix, got {report.tokens} tokens and no codes")
    nothing = [tuple(side[:, :, :0] for side in pair) for pair in prefix.states]
    states = [cache.update(keys, values, layer) for layer, (keys, values) in enumerate(nothing)]
    return Compressed(states, 8 * (report.codes + report.basis + report.positions) / prefix.coded_elements)


def spectral(codec: Codec | KVCodec) -> Row:
    """Today's cache with a pair of codecs."""

    def fresh(prefix: Prefix) -> SpectralCache:
        ends = {"sinks": prefix.protocol.sinks, "window": prefix.protocol.window}
        return SpectralCache(prefix.model.config, codec, **ends, block=BLOCK)

    return partial(through_cache, fresh)


def prompt_sensitivities(prefix: Prefix) -> Sensitivities:
    """Those of the last tokens of a prompt, as ``spectral_cache`` measures them."""
    model, states = prefix.model, [[side[:, :, :-PREDICTIONS].float() for side in pair] for pair in prefix.states]
    inputs, frame = {"input_ids": prefix.ids[:, -PREDICTIONS:]}, UnrotatedKeys(model.config)
    return measure_sensitivities(model, inputs, *zip(*states, strict=True), frame, sinks=prefix.protocol.sinks)


def pooled(bits: float, entropy_coded: bool, sensitivities: Callable[[Prefix], Sensitivities] | None) -> Row:
    """One budget for the whole cache."""

    def fresh(prefix: Prefix) -> SpectralCache:
        given = None if sensitivities is None else sensitivities(prefix)
        ends = {"sinks": prefix.protocol.sinks, "window": prefix.protocol.window, "block": BLOCK}
        config = prefix.model.config
        return SpectralCache(config, bits=bits, sensitivities=given, entropy_coded=entropy_coded, **ends)

    return partial(through_cache, fresh)


def quanto(bits: int, group: int, prefix: Prefix) -> Compressed:
    """Transformers' own quantised cache of the coded tokens, keys rotated; the ends stay exact here too."""
    from transformers import QuantizedCache

    start, stop = prefix.protocol.sinks, prefix.protocol.sinks + prefix.protocol.coded
    cache = QuantizedCache("quanto", prefix.model.config, nbits=bits, q_group_size=group)
    states = []
    for layer, pair in enumerate(prefix.states):
        coded = [side[:, :, start:stop].float() for side in pair]
        cache.update(*coded, layer)
        decoded = cache.update(*(side[:, :, :0] for side in coded), layer)
        ends = zip(pair, decoded, strict=True)
        keys, values = (torch.cat([x[:, :, :start], y.to(x.dtype), x[:, :, stop:]], 2) for x, y in ends)
        states.append((keys, values))
    return Compressed(states, bits + 2 * 16 / group)  # a scale and a shift for each group, counted in 16 bits


def kivi(bits: int, group: int) -> KVCodec:
    return KVCodec(UniformInt(bits, axis="channel", stretch=group), UniformInt(bits, axis="token", stretch=group))


def transform(keys: float, values: float) -> KVCodec:
    """Bits of keys and of values, bases shared out over 4,096 tokens as by default."""
    return KVCodec(*(TransformCodec(bits_per_element=bits, tokens=4096) for bits in (keys, values)))


def rows(of_model: Callable[[Prefix], Sensitivities]) -> dict[str, Row]:
    """Rows by name; where two numbers are given the first is of keys.

    Args:
        of_model: sensitivities of the model, measured on other texts.
    """
    codecs: dict[str, Codec | KVCodec] = {"exact": Exact()}
    codecs |= {f"integers of {bits} bits per token": UniformInt(bits) for bits in (4, 3, 2)}
    for bits, group in ((4, 64), (3, 64), (2, 64), (2, 32)):
        codecs[f"KIVI's layout, {bits} bits, groups of {group}"] = kivi(bits, group)
    for bits in (4, 3, 2):
        codecs[f"random rotation, {bits} bits per token"] = RotatedLloydMax(bits)
    codecs["random rotation, 3/2 bits per token"] = KVCodec(RotatedLloydMax(3), RotatedLloydMax(2))
    codecs["reported pipeline, ranks 16/32"] = KVCodec(LowRankInt8(16), LowRankInt8(32))
    codecs["… with the means removed"] = KVCodec(LowRankInt8(16, centred=True), LowRankInt8(32, centred=True))
    for keys, values in ((4, 4), (3, 3), (3, 2), (2, 3), (2, 2), (1.75, 1.75)):
        codecs[f"transform {keys:g}/{values:g}"] = transform(keys, values)
    named = {name: spectral(codec) for name, codec in codecs.items()}
    sources = {"model": of_model, "prompt": prompt_sensitivities, "factors": None}
    for entropy_coded, (source, sensitivities), bits in product((False, True), sources.items(), BUDGETS):
        name = f"one budget, {bits} bits, {source}{', entropy coded' if entropy_coded else ''}"
        named[name] = pooled(bits, entropy_coded, sensitivities)
    named |= {f"transformers' quanto, {b} bits, groups of {g}": partial(quanto, b, g) for b, g in ((4, 64), (2, 64))}
    return named


def unavailable() -> dict[str, str]:
    """Why rows whose names begin so cannot be measured on this machine."""
    from transformers.utils import is_optimum_quanto_available

    if is_optimum_quanto_available():
        return {}
    return {"transformers' quanto": "the package optimum-quanto is not installed"}
