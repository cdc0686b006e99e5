"""Sampled batch: a few samples of a batch, and a network's predictions for them."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor


def spread_batches(count: float, chosen: int) -> set[int]:
    """Numbers of ``chosen`` of ``count`` batches: the first, and others evenly spaced; all if there are not more.

    The last batch, which is often smaller, is taken only if all are; of infinitely many, the first are.
    """
    if count == float("inf"):
        return set(range(chosen))
    chosen = min(chosen, int(count))
    return {k * int(count) // chosen for k in range(chosen)}


class SampledBatch:
    """Sampled batch: some samples of a batch, to be passed through a network.

    A batch is a sequence that begins with the network's input and maybe the labels, an input alone, or a mapping of
    arguments, whose ``labels`` are not handed on and are, for logits (B, T, classes), those of the token before.

    Args:
        batch: of tensors whose first dimension is the samples; whatever is not is handed on whole.
        samples: how many, evenly spread; None is all.
    """

    def __init__(self, batch: Any, samples: int | None = None) -> None:
        self._mapping = isinstance(batch, Mapping)
        self._parts: Mapping[Any, Any] = batch if isinstance(batch, Mapping) else dict(enumerate(_sequence(batch)))
        self._count = next((len(x) for x in self._parts.values() if isinstance(x, Tensor) and x.ndim), 0)
        if samples is not None and samples < self._count:
            self._take(torch.linspace(0, self._count - 1, samples, dtype=torch.float32).round().long())

    def halves(self) -> tuple[Self, Self] | None:
        """The first half of the samples and the second, or None if there are fewer than two."""
        if self._count < 2:
            return None
        whole = dict(self._parts) if self._mapping else tuple(self._parts.values())
        first, second = type(self)(whole), type(self)(whole)
        first._take(torch.arange(self._count // 2))
        second._take(torch.arange(self._count // 2, self._count))
        return first, second

    def __call__(self, network: Callable[..., Any]) -> Tensor | None:
        """Runs the network; logits, if it gives a tensor (B, ...) or something that has ``logits``."""
        if self._mapping:
            output = network(**{name: x for name, x in self._parts.items() if name != "labels"})
        else:
            output = network(self._parts[0])
        output = getattr(output, "logits", output)
        return output.detach() if isinstance(output, Tensor) and output.is_floating_point() else None

    def labels(self, logits: Tensor | None) -> Tensor | None:
        """Labels of the logits (..., classes), shape (...), integer, below 0 where there is none; or None."""
        labels = self._parts.get("labels" if self._mapping else 1)
        if logits is None or not isinstance(labels, Tensor) or labels.is_floating_point():
            return None
        if labels.shape != logits.shape[:-1]:
            return None
        if self._mapping and labels.ndim > 1:  # what a position predicts is the label of the next
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -1)], dim=1)
        return labels

    def _take(self, places: Tensor) -> None:
        count, self._count = self._count, len(places)
        self._parts = {
            name: x[places.to(x.device)] if isinstance(x, Tensor) and x.ndim and len(x) == count else x
            for name, x in self._parts.items()
        }


def _sequence(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)
