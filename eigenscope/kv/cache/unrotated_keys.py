"""Unrotated keys: keys as they were before the rotation by their positions, in which they are compressed."""

import importlib
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor

from eigenscope.kv.cache.hugging_face import PreTrainedConfig
from eigenscope.kv.codecs.codec import nbytes

ROTARY_CLASSES = {
    "llama": "LlamaRotaryEmbedding",
    "mistral": "MistralRotaryEmbedding",
    "qwen2": "Qwen2RotaryEmbedding",
    "qwen3": "Qwen3RotaryEmbedding",
    "gemma": "GemmaRotaryEmbedding",
    "phi": "PhiRotaryEmbedding",
    "phi3": "Phi3RotaryEmbedding",
}
FIXED_FREQUENCIES = ("default", "linear", "llama3", "yarn")


def rotary_frequencies(config: PreTrainedConfig) -> tuple[Tensor, float]:
    """The angles by which one position turns each pair of channels, and the factor of keys and queries.

    Computed by the rotary embedding that the model itself uses.

    Returns:
        (r / 2,) float32 in radians, channel i of the first r of a head being paired with channel i + r / 2, the others
        not being turned; and the factor.

    Raises:
        ValueError: the model type, or its type of rotation, is not one that is known to pair channels in this way and
            to turn a position by the same angles however long the context grows; or this version of transformers does
            not have it where others do.
    """
    if config.model_type not in ROTARY_CLASSES:
        raise ValueError(
            f"config.model_type must be one whose rotation is known, {', '.join(ROTARY_CLASSES)}, "
            f"got {config.model_type!r}"
        )
    name = ROTARY_CLASSES[config.model_type]
    try:
        rope_type = (config.rope_parameters or {}).get("rope_type", "default")
        modeling = importlib.import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
        rotary = getattr(modeling, name)
        if rope_type in FIXED_FREQUENCIES:
            embedding = rotary(config)
            frequencies, factor = embedding.inv_freq, float(embedding.attention_scaling)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"the rotation of {config.model_type!r} is read from config.rope_parameters and from inv_freq and "
            f"attention_scaling of {name}, which transformers {version('transformers')} lacks: {error}"
        ) from error
    if rope_type not in FIXED_FREQUENCIES:
        raise ValueError(
            f"rope_type must be one whose frequencies do not change with the length, "
            f"{', '.join(FIXED_FREQUENCIES)}, got {rope_type!r}"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if 2 * len(frequencies) > width:
        raise ValueError(
            f"a rotation must turn at most the {width} channels of a head, got one of {2 * len(frequencies)}"
        )
    return frequencies, factor


class UnrotatedKeys:
    """Turns keys back by their positions, and forth again (Su et al. 2021, *RoFormer*).

    A key at position p is R(p) k. Rotated keys change their directions from token to token, so that no basis fits
    them for long; k does not. What matters for correctness is only that the same angle is undone and redone: the slot
    in the cache would do. With left padding slots and positions differ by the padding, which then stays in the keys as
    a rotation that is constant within a sequence but not between the sequences that share a basis; ``padding`` takes it
    out. Where only the first channels of a head are turned, the others pass as they are.

    Args:
        config: of the model.

    Attributes:
        padding: (B,) int64, how many slots at the left of each sequence hold no token of it; None for none at all.
        longest_padding: of all sequences since padding was set.

    Raises:
        ValueError: as :func:`rotary_frequencies`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.frequencies, self.factor = rotary_frequencies(config)
        self.padding: Tensor | None = None
        self.longest_padding = 0
        self._tables: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def set_padding(self, padding: Tensor | None) -> None:
        """Of the sequences to come; zero everywhere is as none."""
        self.longest_padding = 0 if padding is None else int(padding.max())
        self.padding = padding if self.longest_padding else None
        self.forget()

    def rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Repeats or selects sequences as the cache does."""
        if self.padding is not None:
            self.padding = function(self.padding)
        self.forget()

    def undo(self, keys: Tensor, start: int) -> Tensor:
        """Keys (B, H, T, d) of the slots from ``start`` on as they were before the rotation, in their own dtype."""
        cos, sin = self._table(start, keys)
        turned, rest = self._parts(keys)
        first, second = turned.chunk(2, -1)
        unrotated = torch.cat([first * cos + second * sin, second * cos - first * sin], -1)
        unrotated = unrotated.div_(self.factor**2).to(keys.dtype)
        return torch.cat([unrotated, rest], -1) if rest.shape[-1] else unrotated

    def redo(self, keys: Tensor, start: int, out: Tensor) -> None:
        """Writes the rotated keys (..., T, d), the leading dimensions (B, H) of ``out``, into ``out``."""
        cos, sin = self._table(start, out)
        turned, rest = self._parts(keys)
        first, second = turned.chunk(2, -1)
        half = turned.shape[-1] // 2
        out[..., :half] = first * cos - second * sin
        out[..., half : 2 * half] = second * cos + first * sin
        out[..., 2 * half :] = rest

    def forget(self) -> None:
        """Drops the tables that the layers share within one forward pass."""
        self._tables.clear()

    def nbytes(self) -> int:
        """Bytes of frequencies, padding and tables."""
        return nbytes([self.frequencies, self.padding, self._tables])

    def _parts(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that are turned, and the others."""
        turned = 2 * len(self.frequencies)
        return keys[..., :turned], keys[..., turned:]

    def _table(self, start: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1 or B, 1, T, r / 2), times the factor."""
        dtype = torch.promote_types(keys.dtype, torch.float32)
        entry = (start, keys.shape[-2], dtype, keys.device)
        if entry not in self._tables:
            positions = torch.arange(start, start + keys.shape[-2], device=keys.device)[None]
            if self.padding is not None:
                positions = positions - self.padding.to(keys.device)[:, None]
            angles = positions[..., None].to(dtype) * self.frequencies.to(keys.device, dtype)
            self._tables[entry] = (angles.cos()[:, None] * self.factor, angles.sin()[:, None] * self.factor)
        return self._tables[entry]
