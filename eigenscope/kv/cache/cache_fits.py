"""Fits of a KV cache that can be kept: what codecs have learned for each layer of a model, saved as safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eigenscope.kv.codecs.codec import FittedKV, KVCodec
from eigenscope.kv.codecs.pooled_codec import PooledCodec
from eigenscope.kv.codecs.sensitivities import Sensitivities
from eigenscope.kv.storage import load_tree, save_tree


@dataclass(frozen=True, eq=False)
class CacheFits:
    """What the codecs of a cache have learned.

    Attributes:
        model: name and shapes of the model, as :func:`model_identity` gives them.
        codec: by which keys and values are coded.
        layers: for each layer the states of the codecs.
        sensitivities: by which one budget was spent; None for codecs with budgets of their own.
    """

    model: Mapping[str, Any]
    codec: KVCodec | PooledCodec
    layers: tuple[FittedKV, ...]
    sensitivities: Sensitivities | None = None

    def save(self, path: Path) -> None:
        """Saves to a safetensors file, atomically."""
        save_tree(path, "fits", {name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> "CacheFits":
        """The fits that :meth:`save` saved, on the CPU; no code is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another file, or damaged.
        """
        return cls(**load_tree(path, "fits"))

    def to(self, device: torch.device | str) -> "CacheFits":
        """The same on another device."""
        layers = tuple(FittedKV(*(state.to(device) for state in pair)) for pair in self.layers)
        return CacheFits(self.model, self.codec, layers, self.sensitivities)


def save_sensitivities(path: Path, sensitivities: Sensitivities) -> None:
    """Saves the sensitivities of a model to a safetensors file, atomically."""
    save_tree(path, "sensitivities", sensitivities)


def load_sensitivities(path: Path) -> Sensitivities:
    """The sensitivities that :func:`save_sensitivities` saved; their source is the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or damaged.
    """
    found: Sensitivities = load_tree(path, "sensitivities")
    return replace(found, source=f"{Path(path).name}, {found.source}")
