"""KV-cache compression: codecs of keys and values, their stored bytes, and their effect on attention."""

from typing import TYPE_CHECKING, Any

from eigenscope.kv.cache.cache_report import CacheReport
from eigenscope.kv.codecs.codec import (
    Code,
    Codec,
    Exact,
    Factors,
    Fitted,
    FittedKV,
    KVCodec,
    bits_per_element,
    nbytes,
    stored_tensors,
)
from eigenscope.kv.codecs.low_rank_int8 import LowRankInt8
from eigenscope.kv.codecs.rate_distortion import allocate_bits, rate_distortion_bound
from eigenscope.kv.codecs.score_aware_codec import ScoreAwareCodec
from eigenscope.kv.codecs.transform_codec import TransformCodec
from eigenscope.kv.codecs.uniform_int import UniformInt
from eigenscope.kv.measuring.measures import AttentionChange, attention_change, relative_error

if TYPE_CHECKING:
    from eigenscope.kv.cache.cache_context import SpectralRun as SpectralRun
    from eigenscope.kv.cache.cache_context import spectral_cache as spectral_cache
    from eigenscope.kv.cache.spectral_cache import SpectralCache as SpectralCache

__all__ = [
    "AttentionChange",
    "CacheReport",
    "Code",
    "Codec",
    "Exact",
    "Factors",
    "Fitted",
    "FittedKV",
    "KVCodec",
    "LowRankInt8",
    "ScoreAwareCodec",
    "TransformCodec",
    "UniformInt",
    "allocate_bits",
    "attention_change",
    "bits_per_element",
    "nbytes",
    "rate_distortion_bound",
    "relative_error",
    "stored_tensors",
]


def __getattr__(name: str) -> Any:
    # The cache for generation needs the extra ``hf``; the rest does without, and without the seconds that importing
    # it takes. For the same reason these names are not in __all__.
    if name == "SpectralCache":
        from eigenscope.kv.cache.spectral_cache import SpectralCache

        return SpectralCache
    if name in ("SpectralRun", "spectral_cache"):
        from eigenscope.kv.cache import cache_context

        return getattr(cache_context, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
