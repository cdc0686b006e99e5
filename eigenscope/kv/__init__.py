"""KV-cache compression: codecs of keys and values, their stored bytes, and their effect on attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eigenscope.kv.cache.cache_fits import CacheFits, load_sensitivities, save_sensitivities
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
from eigenscope.kv.codecs.pooled_codec import PooledCodec
from eigenscope.kv.codecs.rate_distortion import allocate_bits, rate_distortion_bound
from eigenscope.kv.codecs.score_aware_codec import ScoreAwareCodec
from eigenscope.kv.codecs.sensitivities import Sensitivities, Sensitivity
from eigenscope.kv.codecs.transform_codec import TransformCodec
from eigenscope.kv.codecs.uniform_int import UniformInt
from eigenscope.kv.measuring.measures import AttentionChange, attention_change, relative_error

if TYPE_CHECKING:
    from eigenscope.kv.cache.cache_context import SpectralRun as SpectralRun
    from eigenscope.kv.cache.cache_context import spectral_cache as spectral_cache
    from eigenscope.kv.cache.fit_cache import fit_cache as fit_cache
    from eigenscope.kv.cache.measured_sensitivities import measure_sensitivities as measure_sensitivities
    from eigenscope.kv.cache.spectral_cache import SpectralCache as SpectralCache

__all__ = [
    "AttentionChange",
    "CacheFits",
    "CacheReport",
    "Code",
    "Codec",
    "Exact",
    "Factors",
    "Fitted",
    "FittedKV",
    "KVCodec",
    "LowRankInt8",
    "PooledCodec",
    "ScoreAwareCodec",
    "Sensitivities",
    "Sensitivity",
    "TransformCodec",
    "UniformInt",
    "allocate_bits",
    "attention_change",
    "bits_per_element",
    "load_sensitivities",
    "nbytes",
    "rate_distortion_bound",
    "relative_error",
    "save_sensitivities",
    "stored_tensors",
]


_WITH_TRANSFORMERS = {
    "SpectralCache": "eigenscope.kv.cache.spectral_cache",
    "SpectralRun": "eigenscope.kv.cache.cache_context",
    "fit_cache": "eigenscope.kv.cache.fit_cache",
    "measure_sensitivities": "eigenscope.kv.cache.measured_sensitivities",
    "spectral_cache": "eigenscope.kv.cache.cache_context",
}


def __getattr__(name: str) -> Any:
    # The cache for generation needs the extra ``hf``; the rest does without, and without the seconds that importing
    # it takes. For the same reason these names are not in __all__.
    if name in _WITH_TRANSFORMERS:
        return getattr(import_module(_WITH_TRANSFORMERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
