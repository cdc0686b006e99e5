"""Imports from the optional transformers library."""

try:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs
except ImportError as error:
    raise ImportError(
        f"a cache for generation needs transformers 5.23, which `pip install eigenscope[hf]` brings: {error}"
    ) from error


def is_user_defined(cache: Cache) -> bool:
    """Whether ``generate`` says that its caller has passed a cache; False where transformers does not say."""
    return bool(getattr(cache, "_is_user_defined", False))


__all__ = [
    "Cache",
    "CacheLayerMixin",
    "DynamicCache",
    "PreTrainedConfig",
    "PreTrainedModel",
    "get_layer_types_and_kwargs",
    "is_user_defined",
]
