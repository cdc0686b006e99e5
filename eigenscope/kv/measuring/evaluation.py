"""Evaluation of KV codecs on a network: fitted on some samples, measured on others."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.codecs.codec import Codec, Exact, Fitted, FittedKV, KVCodec
from eigenscope.kv.codecs.low_rank_int8 import LowRankInt8
from eigenscope.kv.codecs.rate_distortion import rate_distortion_bound
from eigenscope.kv.codecs.score_aware_codec import ScoreAwareCodec
from eigenscope.kv.codecs.transform_codec import TransformCodec
from eigenscope.kv.codecs.uniform_int import UniformInt
from eigenscope.kv.measuring.capture import Captured
from eigenscope.kv.measuring.fit_inputs import ATTENDED, mask_of, met_queries, received_attention
from eigenscope.kv.measuring.measures import attention_change
from eigenscope.kv.measuring.metric_sums import BOUND_BITS, KVMetricSums
from eigenscope.linalg.threaded import eigvalsh

Decoded = dict[str, tuple[Tensor, Tensor]]
"""Layer to decoded keys and values, each (B, heads, T, d)."""


def baseline_codecs() -> dict[str, KVCodec]:
    """Baseline codecs: exact, and uniform integers, keys by channel and values by token."""
    uniform = {
        f"int{bits}": KVCodec(UniformInt(bits, axis="channel"), UniformInt(bits, axis="token")) for bits in (8, 4)
    }
    return {"exact": KVCodec.of(Exact()), **uniform}


def default_codecs(head_width: int, tokens: int) -> dict[str, KVCodec]:
    """The low-rank reference at ranks d/8 for keys and d/4 for values, 16 and 32 at d = 128; and the transform codecs.

    Keys get 3 bits and values 2, because errors of keys cost more. No rank is larger than ``tokens``, those of a block.
    The state of a transform codec may not be affordable at these bits when it serves few samples: its ``fit`` refuses.
    """
    ranks = (min(tokens, max(1, head_width // share)) for share in (8, 4))
    return {
        "low_rank": KVCodec(*map(LowRankInt8, ranks)),
        "transform": KVCodec(TransformCodec(bits_per_element=3.0), TransformCodec(bits_per_element=2.0)),
        "score_aware": KVCodec(ScoreAwareCodec(bits_per_element=3.0), ScoreAwareCodec(bits_per_element=2.0)),
    }


class CodecFailure(NamedTuple):
    """The layers on which a codec was tried together, and why it refused them."""

    layers: tuple[str, ...]
    error: ValueError


class _Stack(NamedTuple):
    """Layers of one shape: keys and values (B, L, H, T, d)."""

    keys: Tensor
    values: Tensor


class KVEvaluation:
    """Evaluation of codecs: fitted once, then measured on any number of other samples of the same network.

    A state that a codec has learned is counted with every measured batch, as if it served no other.

    Args:
        codecs: name to codec.
        layers: names of the layers that are measured.

    Attributes:
        sums: what was measured.
        failed: codec to what it refused first. It is not measured further there.
    """

    def __init__(self, codecs: Mapping[str, KVCodec], layers: Sequence[str]) -> None:
        self.codecs = dict(codecs)
        self.sums = KVMetricSums(list(codecs), list(layers))
        self.failed: dict[str, CodecFailure] = {}
        self._fitted: dict[tuple[str, ...], dict[str, FittedKV]] = {}

    @torch.no_grad()
    def fit(self, captured: Mapping[str, Captured]) -> None:
        """Fits all codecs on the layers of one forward pass, those of one shape in one call."""
        for names, stack in _stacks(captured, _by_shape(captured)).items():
            fitted = {}
            queries = torch.stack([met_queries(captured[name]) for name in names], 1)
            weights = torch.stack([received_attention(captured[name]) for name in names], 1)
            for name, codec in self.codecs.items():
                try:
                    fitted[name] = FittedKV(
                        codec.keys.fit(stack.keys, groups=2, queries=queries),
                        codec.values.fit(stack.values, groups=2, weights=weights),
                    )
                except ValueError as error:
                    self.failed.setdefault(name, CodecFailure(names, error))
            self._fitted[names] = fitted

    @torch.no_grad()
    def measure(self, captured: Mapping[str, Captured]) -> Iterator[tuple[int, Decoded]]:
        """Adds one forward pass to the sums, and yields the number of each codec with what it decodes to.

        Layers that were not there to be fitted, or are not here with those they were fitted with, are left out.
        """
        whole = [names for names in self._fitted if all(name in captured for name in names)]
        stacks = _stacks(captured, whole)
        for names, stack in stacks.items():
            self._add_bound([self.sums.layers.index(name) for name in names], stack)
        for number, name in enumerate(self.codecs):
            decoded: Decoded = {}
            for names, stack in stacks.items():
                try:
                    if name in self._fitted[names]:
                        decoded |= self._add(number, names, stack, self._fitted[names][name], captured)
                except ValueError as error:
                    self.failed.setdefault(name, CodecFailure(names, error))
            if name not in self.failed and decoded:
                yield number, decoded

    def _add(
        self,
        number: int,
        names: Sequence[str],
        stack: _Stack,
        fitted: FittedKV,
        captured: Mapping[str, Captured],
    ) -> Decoded:
        codec = self.codecs[self.sums.codecs[number]]
        places = [self.sums.layers.index(name) for name in names]
        keys, key_bytes = _round_trip(codec.keys, fitted.keys, stack.keys)
        values, value_bytes = _round_trip(codec.values, fitted.values, stack.values)
        for role, X, X_hat, stored in ((0, stack.keys, keys, key_bytes), (1, stack.values, values, value_bytes)):
            elements = torch.full_like(stored, X.numel() / len(names))
            terms = [stored, elements, _squares(X_hat.float() - X.float()), _squares(X)]
            self.sums.tokens[number, places, role] += torch.stack(terms, -1)
        decoded = {}
        for layer, (name, place) in enumerate(zip(names, places, strict=True)):
            decoded[name] = (keys[:, layer], values[:, layer])
            if captured[name].explained:
                self.sums.attention[number, place] += _attention_sums(captured[name], *decoded[name])
        return decoded

    def _add_bound(self, places: Sequence[int], stack: _Stack) -> None:
        for role, X in enumerate((stack.keys, stack.values)):
            tokens = X.movedim(0, -3).flatten(-3, -2).double()  # (L, H, N, d)
            centred = tokens - tokens.mean(-2, keepdim=True)
            spectrum = eigvalsh(centred.mT @ centred).clamp_min(0).flatten(1).cpu()
            self.sums.bound[list(places), role] += rate_distortion_bound(spectrum[:, None], BOUND_BITS)


def _by_shape(captured: Mapping[str, Captured]) -> list[tuple[str, ...]]:
    found: dict[object, list[str]] = defaultdict(list)
    for name, seen in captured.items():
        turned = seen.explained and seen.context.turn_back is not None  # then more queries are met
        found[(turned, *((x.shape, x.dtype) for x in seen[:3]))].append(name)
    return [tuple(names) for names in found.values()]


def _stacks(captured: Mapping[str, Captured], groups: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], _Stack]:
    stacks = {}
    for names in groups:
        layers = [captured[name] for name in names]
        stacks[names] = _Stack(
            torch.stack([seen.keys for seen in layers], 1),
            torch.stack([seen.values for seen in layers], 1),
        )
    return stacks


def _attention_sums(seen: Captured, keys: Tensor, values: Tensor) -> Tensor:
    """A row of :attr:`KVMetricSums.attention`, of the first samples."""
    context = seen.context
    change = attention_change(
        context.turn(seen.queries)[:ATTENDED],
        (context.turn(seen.keys)[:ATTENDED], seen.values[:ATTENDED]),
        (context.turn(keys)[:ATTENDED], values[:ATTENDED]),
        scale=context.scale,
        mask=mask_of(seen, slice(ATTENDED)),
        causal=context.causal,
    )
    parts = [change.score_rmse.square(), change.attention_kl, change.output_cosine]
    return torch.stack([part.double().sum() for part in (*parts, torch.ones_like(parts[0]))]).cpu()


def _round_trip(codec: Codec, fitted: Fitted, X: Tensor) -> tuple[Tensor, Tensor]:
    """X̂, and the bytes stored for each layer, float64 on the CPU."""
    code = codec.encode(X, fitted)
    return codec.decode(code, fitted), codec.bytes_by_group(code, fitted).sum(-1).cpu()


def _squares(X: Tensor) -> Tensor:
    """Sum of squares of each layer of (B, L, H, T, d), float64 on the CPU."""
    return X.float().square().sum((0, 2, 3, 4)).double().cpu()
