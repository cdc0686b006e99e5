"""Predictions of ``predict``, saved as safetensors with the indices of their samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor

from eigenscope.files import replace_atomically

Named = dict[str, Tensor]


class PredictionWriter(BasePredictionWriter):
    """Gathers what ``predict_step`` returns from all ranks, and saves it in the order of the samples, each once.

    ``predict_step`` returns a tensor whose first dimension is the samples, or a dictionary or sequence of such tensors.
    The file holds ``indices`` (N,) int64, places in the data set, beside ``predictions`` or what the dictionary names;
    of several loaders each under its number, ``0/indices``. Samples that a sampler has repeated, to give all ranks
    equally many, are dropped. Where the loader does not tell its indices, samples are numbered as they come.

    Args:
        path: of the file; None saves nothing.

    Attributes:
        saved: the file that was written; None where there was nothing to save.

    Raises:
        ValueError: ``predict_step`` returned something else.
    """

    affects_training = False

    def __init__(self, path: Path | None = None) -> None:
        super().__init__("batch")
        self.path = path
        self.saved: Path | None = None
        self._parts: dict[int, list[Named]] = {}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[Any] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keeps the batch on the CPU."""
        if prediction is None:
            return
        name = type(pl_module).__name__
        named = {key: value.detach().cpu() for key, value in _named(prediction, name).items()}
        size = len(next(iter(named.values())))
        if wrong := [key for key, value in named.items() if len(value) != size]:
            raise ValueError(
                f"predict_step of {name} must return as many samples in {wrong[0]} as in the others, {size}"
            )
        parts = self._parts.setdefault(dataloader_idx, [])
        indices = _places(batch_indices or ())
        if not indices:
            start = sum(len(part["indices"]) for part in parts)
            indices = [(start + i) * trainer.world_size + trainer.global_rank for i in range(size)]
        if len(indices) != size:
            raise ValueError(
                f"predict_step of {name} must return one prediction per sample: the batch has {len(indices)} samples, "
                f"the first dimension of what it returned is {size}"
            )
        parts.append({"indices": torch.tensor(indices, dtype=torch.int64), **named})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers and writes."""
        mine = {
            loader: {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            for loader, parts in self._parts.items()
        }
        self._parts = {}
        ranks: list[Any] = [mine]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, mine)
        loaders = sorted({loader for rank in ranks for loader in rank})
        if self.path is None or not trainer.is_global_zero or not loaders:
            return
        found: Named = {}
        for loader in loaders:
            whole = _in_order([rank[loader] for rank in ranks if loader in rank])
            found |= {key if len(loaders) == 1 else f"{loader}/{key}": value for key, value in whole.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(self.path) as aside:
            save_file(found, aside)
        self.saved = self.path


def free_path(folder: Path, stem: str) -> Path:
    """``<stem>.safetensors`` in a folder, or with the first number that is free: ``<stem>-1.safetensors``."""
    number, path = 0, folder / f"{stem}.safetensors"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.safetensors"
    return path


def _named(prediction: Any, module: str) -> Named:
    """The tensors of a prediction by name."""
    if isinstance(prediction, Tensor):
        found: Mapping[Any, Any] = {"predictions": prediction}
    elif isinstance(prediction, Mapping):
        found = prediction
    elif isinstance(prediction, tuple | list):
        found = {f"predictions_{number}": value for number, value in enumerate(prediction)}
    else:
        found = {"predictions": prediction}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or name == "indices":
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"predict_step of {module} must return tensors whose first dimension is the samples, or a dictionary "
                f"of them (without 'indices'), for them to be saved; got {got} for {name!r}"
            )
    if not found:
        raise ValueError(f"predict_step of {module} returned an empty {type(prediction).__name__}")
    return {str(name): value for name, value in found.items()}


def _in_order(parts: list[Named]) -> Named:
    """All ranks' samples by their indices, each once."""
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    indices, order = whole["indices"].sort(stable=True)
    first = torch.ones(len(indices), dtype=torch.bool)
    first[1:] = indices[1:] != indices[:-1]
    return {key: value[order[first]].contiguous() for key, value in whole.items()}


def _places(keys: Sequence[Any]) -> list[int]:
    """The places in the data set that a sampler's keys mean: themselves, or the last part of (epoch, sample).

    Returns:
        An empty list if they are no numbers.
    """
    places = [key[-1] if isinstance(key, tuple) else key for key in keys]
    return [int(place) for place in places] if all(hasattr(place, "__index__") for place in places) else []
