"""Sensitivities: what a squared error in keys or values of each layer and head costs a model's predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of keys over that of values, where nothing is known about a model, each side's error relative to its variance.
KEY_FACTOR = 1.0


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """What a squared error costs, in nats of the predictions or up to a factor that all share.

    Attributes:
        keys: of each layer, (heads,) float32.
        values: of each layer, (heads,) float32.
        source: where they come from.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    source: str

    @classmethod
    def of_energies(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> "Sensitivities":
        """Without a model to ask: a relative error costs the same in every layer, one of keys and one of values.

        Args:
            keys: of each layer the variances (heads,).
            values: the same of the values.
        """

        def side(energies: Sequence[Tensor], factor: float) -> tuple[Tensor, ...]:
            total = [e.sum().clamp_min(torch.finfo(torch.float64).tiny) for e in energies]
            return tuple((factor / t).expand(len(e)) for e, t in zip(energies, total, strict=True))

        return cls(side(keys, KEY_FACTOR), side(values, 1.0), "one factor for keys and one for values")

    def check(self, heads: Sequence[int]) -> None:
        """Raises ValueError unless they are of layers with so many heads, finite and at least 0."""
        for name in ("keys", "values"):
            own = getattr(self, name)
            if [len(w) for w in own] != list(heads):
                raise ValueError(
                    f"sensitivities of {name} must be of {len(heads)} layers of {sorted(set(heads))} heads, got "
                    f"{len(own)} layers of {sorted({len(w) for w in own})}"
                )
            for layer, w in enumerate(own):
                if not ((w >= 0) & (w < torch.inf)).all():
                    raise ValueError(f"sensitivities of {name} of layer {layer} must be finite and >= 0, got {w}")
