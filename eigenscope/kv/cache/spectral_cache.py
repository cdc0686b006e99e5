"""Compressed KV cache for generation with transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import LongTensor, Tensor

from eigenscope.kv.cache.cache_fits import CacheFits
from eigenscope.kv.cache.cache_layer import SpectralLayer
from eigenscope.kv.cache.cache_report import BASELINE_BITS, CacheReport
from eigenscope.kv.cache.hugging_face import Cache, PreTrainedConfig, get_layer_types_and_kwargs
from eigenscope.kv.cache.model_identity import check_model, model_identity
from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys
from eigenscope.kv.codecs.codec import Codec, FittedKV, KVCodec, nbytes
from eigenscope.kv.codecs.pooled_codec import PooledCodec
from eigenscope.kv.codecs.score_aware_codec import ScoreAwareCodec
from eigenscope.kv.codecs.sensitivities import Sensitivities
from eigenscope.kv.storage import load_tree, save_tree

DEFAULT_BITS = 2.6  # of an element, everything counted


class SpectralCache(Cache):
    """Keys and values of a language model with rotary positions, compressed block by block.

    ``model.generate(..., past_key_values=SpectralCache(model.config))``. The first ``sinks`` tokens of a sequence and
    at least its last ``window`` ones stay exact. Tokens between them are compressed in blocks, after attention has
    seen them exactly: the logits of a prompt that is passed in one call are those of an uncompressed cache, and only
    later tokens see codes. Keys are compressed as they were before rotation, key and value heads before they are
    repeated for grouped queries.

    One budget is spent over keys and values of all layers and heads by :class:`PooledCodec`, on the first blocks that
    are whole, all sequences together: where variance times sensitivity is largest. Sensitivities are given, or within
    :func:`spectral_cache` measured on the prompt, or else one factor for keys and one for values;
    :meth:`report` says which. :meth:`reset` forgets what was learned unless it was given.

    Every call decodes all blocks of one layer after another, which costs time in proportion to the context and, while
    a layer attends, the memory of that one layer uncompressed: ``benchmarks/kv_generation.py``.

    Args:
        config: of the model.
        codec: instead of one budget, a pair of codecs for keys and values, or one for both, with budgets of their own
            that each layer spends by itself, such as
            ``KVCodec(TransformCodec(bits_per_element=3.0), TransformCodec(bits_per_element=2.0))``; or a
            :class:`PooledCodec`. A :class:`ScoreAwareCodec` is fitted with queries or attention weights, which a cache
            does not see, and so needs ``fits``.
        bits: of an element of keys and values, everything counted that is stored for compressed blocks; None: 2.6
            without a codec.
        sensitivities: of the model, for one budget; None: as above.
        entropy_coded: stores entropy-coded blocks: fewer bits for the same error, and far slower to read. For caches
            that are saved, and contexts that are read rarely.
        sinks: exact tokens at the start of each sequence, where attention tends to rest whatever they say (Xiao et
            al. 2024).
        window: exact tokens at the end of each sequence.
        block: tokens that are compressed together, at least ``window``.
        fits: what the codecs have learned, from :func:`fit_cache` or :attr:`fits` of another cache; it also says which
            codecs. Neither codec, bits, sensitivities nor entropy_coded can be given with it.

    Raises:
        ValueError: a layer does not attend to all earlier tokens, the model's rotation is not known, an option is
            out of range or contradicts another, or the fits are of another model.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        codec: Codec | KVCodec | PooledCodec | None = None,
        *,
        bits: float | None = None,
        sensitivities: Sensitivities | None = None,
        entropy_coded: bool = False,
        sinks: int = 4,
        window: int = 64,
        block: int = 512,
        fits: CacheFits | None = None,
    ) -> None:
        for name, value, least in (("sinks", sinks, 0), ("window", window, 0), ("block", block, max(1, window))):
            if value < least:
                raise ValueError(f"{name} must be at least {least}{' (window)' * (name == 'block')}, got {value}")
        self.identity = model_identity(config)
        types, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        for index, kind in enumerate(types):
            if kind != "full_attention":
                raise ValueError(
                    f"layer {index} is of type {kind!r}, and only 'full_attention' can be compressed: a sliding "
                    "window is short already; set sliding_window=None in the configuration if contexts stay below it"
                )
        options = {"codec": codec, "bits": bits, "sensitivities": sensitivities, "entropy_coded": entropy_coded or None}
        self.codec = _chosen(options, fits)
        if fits is not None:
            check_model(fits.model, config, "fits")
        self.sensitivities = sensitivities if fits is None else fits.sensitivities
        self._given = self.sensitivities
        self.ask_model = False  # set by spectral_cache, which measures them after the forward pass
        self.frame = UnrotatedKeys(config.get_text_config(decoder=True))
        self.sizes = {"sinks": sinks, "window": window, "block": block}
        states = [None] * len(types) if fits is None else list(fits.layers)
        pooled = isinstance(self.codec, PooledCodec)
        pair = self.codec.coders if isinstance(self.codec, PooledCodec) else self.codec
        super().__init__(
            layers=[
                SpectralLayer(i, pair, self.frame, **self.sizes, fitted=state, pooled=pooled)
                for i, state in enumerate(states)
            ]
        )

    @property
    def compressed_layers(self) -> list[SpectralLayer]:
        """The layers, by their type."""
        return cast(list[SpectralLayer], self.layers)

    def set_padding(self, attention_mask: Tensor) -> None:
        """Says where the sequences that come start, for left-padded batches; :func:`spectral_cache` does so itself.

        Without it everything works, but the sinks are those of the longest sequence, and shared bases serve less well.

        Args:
            attention_mask: (B, n), zero for padding. B may be a divisor of the batch, as before beams are made.

        Raises:
            ValueError: the mask is of another shape, or the cache is not empty.
        """
        if attention_mask.ndim != 2:
            raise ValueError(f"attention_mask must be (B, n), got shape {tuple(attention_mask.shape)}")
        if self.get_seq_length():
            raise ValueError(f"padding must be set while the cache is empty, got one of {self.get_seq_length()} tokens")
        self.frame.set_padding((attention_mask != 0).cumsum(-1).eq(0).sum(-1))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Adds the tokens of one layer, and returns all tokens of it; see :meth:`SpectralLayer.update`."""
        padding, batch = self.frame.padding, key_states.shape[0]
        if padding is not None and len(padding) != batch:
            if batch % len(padding):
                raise ValueError(f"padding was set for {len(padding)} sequences, got {batch}")
            self.frame.rows(lambda t: t.repeat_interleave(batch // len(t), 0))
        if layer_idx == 0 and self.is_cropped_later() and not self.ask_model:
            self.settle()
        states: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == len(self.compressed_layers) - 1:
            if not self.is_cropped_later() and not self.ask_model:
                self.settle()
            self.frame.forget()
        return states

    def is_cropped_later(self) -> bool:
        """Whether the newest tokens are drafts, of which the next call of :meth:`crop` says which stay."""
        return self.compressed_layers[0].record_past

    def is_waiting(self) -> bool:
        """Whether blocks are whole for which one budget is still to be spent."""
        return (
            isinstance(self.codec, PooledCodec)
            and all(layer.fitted is None for layer in self.compressed_layers)
            and all(layer.whole_blocks() for layer in self.compressed_layers)
        )

    def settle(self, sensitivities: Sensitivities | None = None) -> None:
        """Spends one budget over the blocks that are whole, and compresses them; nothing if none waits for that."""
        if not self.is_waiting() or not isinstance(self.codec, PooledCodec):
            return
        blocks = [pair for layer in self.compressed_layers if (pair := layer.ready()) is not None]
        self.sensitivities = sensitivities or self.sensitivities
        keys, values = zip(*blocks, strict=True)
        learned, self.sensitivities = self.codec.fit(keys, values, self.sensitivities)
        for layer, state, pair in zip(self.compressed_layers, learned, blocks, strict=True):
            layer.fitted = state
            layer.compress(pair)

    @property
    def fits(self) -> CacheFits | None:
        """What the codecs have learned; None until every layer has compressed a block."""
        learned = [layer.fitted for layer in self.compressed_layers if layer.fitted is not None]
        if len(learned) < len(self.compressed_layers):
            return None
        return CacheFits(self.identity, self.codec, tuple(learned), self.sensitivities)

    def save(self, path: Path) -> None:
        """Saves the whole cache to a safetensors file, to go on with :meth:`load` in another process."""
        names = ("keys", "values", "first", "codes", "fitted", "blocks")
        layers = [{name: getattr(layer, name, None) for name in names} for layer in self.compressed_layers]
        tree: dict[str, Any] = {"model": self.identity, "codec": self.codec, "sizes": self.sizes, "layers": layers}
        tree |= {"padding": self.frame.padding, "sensitivities": self.sensitivities}
        save_tree(path, "cache", tree)

    @classmethod
    def load(cls, path: Path, config: PreTrainedConfig, device: torch.device | str = "cpu") -> "SpectralCache":
        """The cache that :meth:`save` saved.

        Args:
            path: of the file; it executes no code.
            config: of the model that the cache is of.
            device: for its tensors.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another file, or damaged, or of another model.
        """
        tree = load_tree(path, "cache")
        check_model(tree["model"], config, f"{path}: keys and values")
        cache = cls(config, tree["codec"], **tree["sizes"])
        cache.sensitivities = tree["sensitivities"]
        if tree["padding"] is not None:
            cache.frame.set_padding(tree["padding"].to(device))
        for layer, state in zip(cache.compressed_layers, tree["layers"], strict=True):
            if state["keys"] is None:
                continue
            layer.lazy_initialization(state["keys"].to(device), state["values"].to(device))
            for name in ("keys", "values"):
                setattr(layer, name, state[name].to(device))
            layer.blocks = state["blocks"]
            if layer.blocks:
                keys, values = state["first"]
                layer.first = (keys.to(device), values.to(device))
                keys, values = state["codes"]
                layer.codes = (keys.to(device), values.to(device))
            layer.fitted = None if state["fitted"] is None else FittedKV(*(x.to(device) for x in state["fitted"]))
        return cache

    def report(self) -> CacheReport:
        """What is held now, in bytes and bits."""
        layers = [layer for layer in self.compressed_layers if layer.is_initialized]
        tails = [(layer.keys, layer.values) for layer in layers]
        tokens, sequences = self.get_seq_length(), len(layers[0].keys) if layers else 0
        elements = sum(t.shape[1] * t.shape[-1] for pair in tails for t in pair)
        coded = layers[0].blocks * layers[0].block if layers else 0
        sides = [[layer.bits(side) for layer in layers if layer.blocks] for side in (0, 1)]
        return CacheReport(
            tokens=tokens,
            sequences=sequences,
            coded=coded,
            baseline=elements * tokens * sequences * BASELINE_BITS // 8,
            sinks=nbytes([layer.first for layer in layers]),
            codes=nbytes([layer.codes for layer in layers]),
            basis=nbytes([layer.fitted for layer in layers]),
            tail=nbytes(tails),
            positions=self.frame.nbytes(),
            bits_keys=tuple(sides[0]),
            bits_values=tuple(sides[1]),
            sensitivities=None if self.sensitivities is None else self.sensitivities.source,
        )

    def reset(self) -> None:
        """Drops all tokens, their padding and, unless it was given, what the codecs have learned."""
        super().reset()  # type: ignore[no-untyped-call]
        self.frame.set_padding(None)
        self.sensitivities = self._given

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last ``-tokens_to_remove`` tokens; see :meth:`SpectralLayer.crop`."""
        super().crop(tokens_to_remove)
        if self.is_cropped_later() and not self.ask_model:
            self.settle()
        self.frame.forget()

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Takes the sequences ``beam_idx`` in their order."""
        super().reorder_cache(beam_idx)
        self.frame.rows(lambda t: t[beam_idx.to(t.device)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the sequences ``indices``, numbers or a mask."""
        super().batch_select_indices(indices)
        self.frame.rows(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        self.frame.rows(lambda t: t.repeat_interleave(repeats, 0))


def _chosen(options: Mapping[str, Any], fits: CacheFits | None) -> KVCodec | PooledCodec:
    """The codec that a cache was asked for.

    Raises:
        ValueError: options contradict each other.
    """
    given = [name for name, value in options.items() if value is not None]
    if fits is not None:
        if given:
            raise ValueError(f"fits say themselves how they are coded: give either fits or {', '.join(given)}")
        return fits.codec
    codec, bits = options["codec"], options["bits"]
    if codec is None:
        return PooledCodec(DEFAULT_BITS if bits is None else bits, entropy_coded=options["entropy_coded"] is not None)
    if isinstance(codec, PooledCodec):
        if bits is not None or options["entropy_coded"]:
            raise ValueError("a PooledCodec says itself its bits and form: give either codec or bits and entropy_coded")
        return codec
    if given != ["codec"]:
        raise ValueError(f"a codec has a budget of its own: give either codec or {', '.join(given[1:])}")
    pair = KVCodec.of(codec)
    if any(isinstance(side, ScoreAwareCodec) for side in (pair.keys, pair.values)):
        raise ValueError(
            "a ScoreAwareCodec is fitted with queries or attention weights, which a cache does not see: give fits"
        )
    return pair
