"""Context manager for generation with a compressed KV cache."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.kv.cache.cache_fits import CacheFits
from eigenscope.kv.cache.cache_report import CacheReport
from eigenscope.kv.cache.hugging_face import Cache, DynamicCache, PreTrainedModel, is_user_defined
from eigenscope.kv.cache.measured_sensitivities import FEWEST, PREDICTIONS, cache_argument, measure_sensitivities
from eigenscope.kv.cache.spectral_cache import SpectralCache
from eigenscope.kv.codecs.codec import Codec, KVCodec
from eigenscope.kv.codecs.pooled_codec import PooledCodec
from eigenscope.kv.codecs.sensitivities import Sensitivities

_SLICED = ("input_ids", "inputs_embeds", "position_ids")  # arguments of a forward pass with an entry for each token


class SpectralRun:
    """The latest cache of a :func:`spectral_cache` block.

    Attributes:
        cache: that of the latest generation; None before the first, and after the block, which frees it.
        measuring: whether the model is being asked for its sensitivities.
    """

    def __init__(self) -> None:
        self.cache: SpectralCache | None = None
        self.measuring = False
        self._last: CacheReport | None = None
        self._compressed = False

    def report(self) -> CacheReport:
        """What the latest cache holds, or held when the block ended.

        Raises:
            ValueError: nothing was generated.
        """
        report = self._last if self.cache is None else self.cache.report()
        if report is None:
            raise ValueError("nothing was generated within the block, so there is no cache to report of")
        return report

    def _leave(self, cache: SpectralCache | None) -> None:
        """Goes over to another cache, or to none."""
        if self.cache is not None and self.cache is not cache:
            self.cache.ask_model = False
            self._last = self.cache.report()
            self._compressed = self._compressed or self._last.coded > 0
        self.cache = cache


class _Recent:
    """Arguments of the forward passes of one cache for its latest tokens."""

    def __init__(self) -> None:
        self.cache: Cache | None = None
        self.tokens: dict[str, Tensor] = {}
        self.mask: Tensor | None = None
        self.slots = 0  # of the cache with them

    def add(self, cache: SpectralCache, kwargs: dict[str, Any]) -> None:
        given = {name: kwargs[name] for name in _SLICED if isinstance(kwargs.get(name), Tensor)}
        if self.cache is cache and cache.get_seq_length() and given:
            both = [name for name in given if name in self.tokens and len(given[name]) == len(self.tokens[name])]
            count = next(iter(given.values())).shape[1]
            old = self._kept(cache.get_seq_length())
            given = {name: torch.cat([old[name], given[name]], 1) for name in both}
            self.slots = cache.get_seq_length() + count
        else:
            self.slots = next((x.shape[1] for x in given.values()), 0)
        self.cache, self.tokens = cache, {name: x[:, -PREDICTIONS:] for name, x in given.items()}
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _kept(self, slots: int) -> dict[str, Tensor]:
        """Without those that the cache was cropped by since."""
        return {name: x[:, : max(0, x.shape[1] - (self.slots - slots))] for name, x in self.tokens.items()}

    def inputs(self, slots: int) -> dict[str, Tensor] | None:
        """Those of the last of ``slots`` tokens in the cache, at most half of them; None if too few are known."""
        tokens = self._kept(slots)
        count = min(min((x.shape[1] for x in tokens.values()), default=0), PREDICTIONS, slots // 2)
        if count < FEWEST or not {"input_ids", "inputs_embeds"} & tokens.keys():
            return None
        inputs = {name: x[:, -count:] for name, x in tokens.items()}
        return inputs if self.mask is None else inputs | {"attention_mask": self.mask[:, :slots]}


@contextmanager
def spectral_cache(
    model: PreTrainedModel,
    codec: Codec | KVCodec | PooledCodec | None = None,
    *,
    bits: float | None = None,
    sensitivities: Sensitivities | None = None,
    entropy_coded: bool = False,
    sinks: int = 4,
    window: int = 64,
    block: int = 512,
    fits: CacheFits | None = None,
) -> Iterator[SpectralRun]:
    """Within the block, ``model.generate`` uses a fresh :class:`SpectralCache` for each call.

    ``with spectral_cache(model): model.generate(...)``. It takes the place of the empty ``DynamicCache`` that
    ``generate`` makes, by a hook before the decoder's forward pass, which is gone after the block, exceptions
    included. The hook also tells the cache, or one that is passed as ``past_key_values``, where left-padded sequences
    start. A cache that was passed stays.

    Where one budget is spent and neither fits nor sensitivities are given, these are measured when the first blocks
    are whole, on up to 128 of the latest tokens: two backward passes, about as long as two more forward passes over
    them (:func:`measure_sensitivities`).

    Args:
        model: whose configuration :class:`SpectralCache` accepts.
        codec: as for :class:`SpectralCache`.
        bits: as for :class:`SpectralCache`.
        sensitivities: as for :class:`SpectralCache`.
        entropy_coded: as for :class:`SpectralCache`.
        sinks: as for :class:`SpectralCache`.
        window: as for :class:`SpectralCache`.
        block: as for :class:`SpectralCache`.
        fits: as for :class:`SpectralCache`.

    Raises:
        ValueError: as :class:`SpectralCache`; or, from within the block, ``generate`` was asked for a cache of another
            kind by ``cache_implementation`` or for none; or, at its end, nothing was compressed: no context reached
            its first whole block, or nothing was generated.
    """
    options: dict[str, Any] = {"bits": bits, "sensitivities": sensitivities, "entropy_coded": entropy_coded}
    options |= {"sinks": sinks, "window": window, "block": block, "fits": fits}

    def fresh() -> SpectralCache:
        return SpectralCache(model.config, codec, **options)

    fresh()  # wrong options are an error here, not in the middle of a generation
    run, recent = SpectralRun(), _Recent()
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    argument, signature = cache_argument(decoder), inspect.signature(type(decoder).forward)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if run.measuring:
            return None
        given = signature.bind_partial(module, *args).arguments
        named = next((name for name in ("cache", "past_key_values") if name in kwargs), argument)
        cache = kwargs.get(named, given.get(argument))
        if not isinstance(cache, Cache):
            raise ValueError(
                f"{type(module).__name__} of transformers {version('transformers')} was called without a cache "
                f"({argument}), so that nothing can be compressed: use_cache must not be False within spectral_cache"
            )
        if not isinstance(cache, SpectralCache):
            passed = is_user_defined(cache) or cache.get_seq_length() > 0
            if not passed and type(cache) is not DynamicCache:
                raise ValueError(
                    f"cache_implementation must not be set within spectral_cache, got a {type(cache).__name__}"
                )
            if passed:
                return None
            cache = fresh()
        run._leave(cache)
        cache.ask_model = isinstance(cache.codec, PooledCodec) and cache.sensitivities is None
        if cache.is_cropped_later():  # what it holds now will stay
            settle(cache)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not cache.get_seq_length():
            cache.set_padding(mask)
        if cache.ask_model:
            recent.add(cache, given | kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != named}
        return args, kwargs | {named: cache}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if run.cache is not None and not run.measuring and not run.cache.is_cropped_later():
            settle(run.cache)

    def settle(cache: SpectralCache) -> None:
        if not cache.ask_model or not cache.is_waiting():
            return
        inputs, measured = recent.inputs(cache.get_seq_length()), None
        if inputs is not None:
            count = next(iter(inputs.values())).shape[1]
            keys = [layer.keys[:, :, :-count] for layer in cache.compressed_layers]
            values = [layer.values[:, :, :-count] for layer in cache.compressed_layers]
            run.measuring = True
            try:
                measured = measure_sensitivities(model, inputs, keys, values, cache.frame, sinks=cache.sizes["sinks"])
            finally:
                run.measuring = False
        cache.ask_model = False
        cache.settle(measured)
        cache.frame.forget()

    handles = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    ]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()
        run._leave(None)
    if not run._compressed:
        last = "nothing was generated"
        if run._last is not None:
            last = f"the last context was of {run._last.tokens} tokens"
        raise ValueError(
            f"nothing was compressed within spectral_cache: {last}, and a block is compressed when "
            f"{sinks + window + block} are read: {sinks} sinks, {window} in the window and {block} of a block; "
            "a smaller block is compressed earlier"
        )
