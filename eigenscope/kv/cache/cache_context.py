"""Context manager for generation with a compressed KV cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from eigenscope.kv.cache.cache_report import CacheReport
from eigenscope.kv.cache.hugging_face import Cache, DynamicCache, PreTrainedModel, is_user_defined
from eigenscope.kv.cache.spectral_cache import DEFAULT_CODEC, SpectralCache
from eigenscope.kv.codecs.codec import Codec, FittedKV, KVCodec


class SpectralRun:
    """The latest cache of a :func:`spectral_cache` block.

    Attributes:
        cache: that of the latest generation; None before the first, and after the block, which frees it.
    """

    def __init__(self) -> None:
        self.cache: SpectralCache | None = None
        self._last: CacheReport | None = None

    def report(self) -> CacheReport:
        """What the latest cache holds, or held when the block ended.

        Raises:
            ValueError: nothing was generated.
        """
        report = self._last if self.cache is None else self.cache.report()
        if report is None:
            raise ValueError("nothing was generated within the block, so there is no cache to report of")
        return report

    def _close(self) -> None:
        self._last = None if self.cache is None else self.cache.report()
        self.cache = None


@contextmanager
def spectral_cache(
    model: PreTrainedModel,
    codec: Codec | KVCodec = DEFAULT_CODEC,
    *,
    sinks: int = 4,
    window: int = 64,
    block: int = 512,
    fitted: Sequence[FittedKV] | None = None,
) -> Iterator[SpectralRun]:
    """Within the block, ``model.generate`` uses a fresh :class:`SpectralCache` for each call.

    ``with spectral_cache(model): model.generate(...)``. It takes the place of the empty ``DynamicCache`` that
    ``generate`` makes, by a hook before the decoder's forward pass, which is gone after the block, exceptions
    included. The hook also tells the cache, or one that is passed as ``past_key_values``, where left-padded sequences
    start. A cache that was passed stays.

    Args:
        model: whose configuration :class:`SpectralCache` accepts.
        codec: as for :class:`SpectralCache`.
        sinks: as for :class:`SpectralCache`.
        window: as for :class:`SpectralCache`.
        block: as for :class:`SpectralCache`.
        fitted: as for :class:`SpectralCache`.

    Raises:
        ValueError: as :class:`SpectralCache`; or, from within the block, ``generate`` was asked for a cache of another
            kind by ``cache_implementation``.
    """
    options = {"sinks": sinks, "window": window, "block": block}

    def fresh() -> SpectralCache:
        return SpectralCache(model.config, codec, **options, fitted=fitted)

    fresh()  # wrong options are an error here, not in the middle of a generation
    run = SpectralRun()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, Cache) and not isinstance(cache, SpectralCache):
            passed = is_user_defined(cache) or cache.get_seq_length() > 0
            if not passed and type(cache) is not DynamicCache:
                raise ValueError(
                    f"cache_implementation must not be set within spectral_cache, got a {type(cache).__name__}"
                )
            if not passed:
                cache = fresh()
        if isinstance(cache, SpectralCache):
            run.cache = cache
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2 and not cache.get_seq_length():
                cache.set_padding(mask)
        return args, kwargs | {"past_key_values": cache}

    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    handle = decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield run
    finally:
        handle.remove()
        run._close()
