"""Identity of a model for fits and caches that were saved: its name, and the shapes of its keys and values."""

from collections.abc import Mapping
from typing import Any

from eigenscope.kv.cache.hugging_face import PreTrainedConfig


def model_identity(config: PreTrainedConfig) -> dict[str, Any]:
    """Name and shapes of a model: plain values, with the rotation of its keys."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {
        "name": str(getattr(config, "name_or_path", "") or "").rstrip("/").rpartition("/")[2],
        "model_type": text.model_type,
        "layers": text.num_hidden_layers,
        "key_heads": heads,
        "channels": width,
        "rotation": {str(key): value for key, value in (getattr(text, "rope_parameters", None) or {}).items()},
    }


def check_model(saved: Mapping[str, Any], config: PreTrainedConfig, what: str) -> None:
    """Raises ValueError unless ``what`` was made with this model; names count where both have one.

    The last part of a name counts, so that a folder and a repository of one model agree.
    """
    own = model_identity(config)
    for key, value in own.items():
        unnamed = key == "name" and not (value and saved.get("name"))
        if not unnamed and saved.get(key) != value:
            raise ValueError(
                f"{what} must be of this model, whose {key.replace('_', ' ')} is {value!r}, got those of a model whose "
                f"{key.replace('_', ' ')} is {saved.get(key)!r}"
            )
