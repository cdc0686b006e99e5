"""Imports from the optional transformers library."""

try:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs
except ImportError as error:
    raise ImportError(
        f"a cache for generation needs transformers 5.23, which `pip install eigenscope[hf]` brings: {error}"
    ) from error

__all__ = [
    "Cache",
    "CacheLayerMixin",
    "DynamicCache",
    "PreTrainedConfig",
    "PreTrainedModel",
    "get_layer_types_and_kwargs",
]
