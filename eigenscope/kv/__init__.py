"""KV-cache compression: codecs of keys and values, their stored bytes, and their effect on attention."""

from typing import TYPE_CHECKING, Any

from eigenscope.kv.attention import compressed_attention
from eigenscope.kv.cache_report import CacheReport
from eigenscope.kv.codec import (
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
from eigenscope.kv.low_rank_int8 import LowRankInt8
from eigenscope.kv.measures import AttentionChange, attention_change, relative_error
from eigenscope.kv.rate_distortion import allocate_bits, rate_distortion_bound
from eigenscope.kv.score_aware_codec import ScoreAwareCodec
from eigenscope.kv.transform_codec import TransformCodec
from eigenscope.kv.uniform_int import UniformInt

if TYPE_CHECKING:
    from eigenscope.kv.cache import SpectralCache as SpectralCache
    from eigenscope.kv.cache_context import SpectralRun as SpectralRun
    from eigenscope.kv.cache_context import spectral_cache as spectral_cache

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
    "compressed_attention",
    "nbytes",
    "rate_distortion_bound",
    "relative_error",
    "stored_tensors",
]


def __getattr__(name: str) -> Any:
    # The cache for generation needs the extra ``hf``; the rest does without, and without the seconds that importing
    # it takes. For the same reason these names are not in __all__.
    if name == "SpectralCache":
        from eigenscope.kv.cache import SpectralCache

        return SpectralCache
    if name in ("SpectralRun", "spectral_cache"):
        from eigenscope.kv import cache_context

        return getattr(cache_context, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
