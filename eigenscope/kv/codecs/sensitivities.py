"""Sensitivities: what an error in keys or values of each layer and head costs a model's predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.codecs.bit_planes import distortions

#: What is assumed where nothing is known about a model.
KEY_FACTOR, COHERENCE = 1.0, 3.0


class Sensitivity(NamedTuple):
    """What an error e in the keys, or the values, of one layer costs the predictions.

    Errors that are independent from token to token cost weight times the mean of ‖e‖² over the tokens. Errors in
    proportion to what they are errors of, as of a direction that is left out, cost ``coherence`` times as much, since
    attention adds them up over tokens.

    Attributes:
        weight: (heads,) float32, up to a factor that all layers share.
        coherence: (heads,) float32, >= 1.
    """

    weight: Tensor
    coherence: Tensor


def remaining(coherence: Tensor) -> Tensor:
    """Cost of a direction's error at 0, 1, …, 8 bits over that of losing it independently, (..., 9) float64.

    A quantiser of distortion D leaves (1 − D) x of x and independent noise of variance D (1 − D). Levels stretched by
    a have an error of cost ρ (1 − a (1 − D))² + a² D (1 − D), which is least, ρ D / (ρ (1 − D) + D), at
    a = ρ / (ρ (1 − D) + D).
    """
    D, rho = distortions().to(coherence.device), coherence.double()[..., None]
    return rho * D / (rho * (1 - D) + D)


def stretched(coherence: Tensor, bits: int) -> Tensor:
    """The factor a of levels of so many bits, as in :func:`remaining`."""
    D = float(distortions()[bits])
    return coherence / (coherence * (1 - D) + D)


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """Sensitivities of a model.

    Attributes:
        keys: of each layer.
        values: of each layer.
        source: where they come from.
    """

    keys: tuple[Sensitivity, ...]
    values: tuple[Sensitivity, ...]
    source: str

    @classmethod
    def of_energies(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> "Sensitivities":
        """Without a model to ask: a relative error costs the same in every layer, one of keys and one of values.

        Args:
            keys: of each layer the variances (heads,).
            values: the same of the values.
        """

        def side(energies: Sequence[Tensor], factor: float) -> tuple[Sensitivity, ...]:
            total = [e.sum().clamp_min(torch.finfo(torch.float64).tiny) for e in energies]
            return tuple(
                Sensitivity((factor / t).expand(len(e)), torch.full_like(e, COHERENCE))
                for e, t in zip(energies, total, strict=True)
            )

        return cls(side(keys, KEY_FACTOR), side(values, 1.0), "one factor for keys and one for values")

    @classmethod
    def mean(cls, several: Sequence["Sensitivities"], source: str) -> "Sensitivities":
        """Those of several texts, averaged."""

        def side(name: str) -> tuple[Sensitivity, ...]:
            layers = zip(*(getattr(each, name) for each in several), strict=True)
            return tuple(
                Sensitivity(*(torch.stack(parts).mean(0) for parts in zip(*sites, strict=True))) for sites in layers
            )

        return cls(side("keys"), side("values"), source)

    def check(self, heads: Sequence[int]) -> None:
        """Raises ValueError unless they are of layers with so many heads, finite and in their range."""
        for name in ("keys", "values"):
            own: tuple[Sensitivity, ...] = getattr(self, name)
            if [len(site.weight) for site in own] != list(heads):
                raise ValueError(
                    f"sensitivities of {name} must be of {len(heads)} layers of {sorted(set(heads))} heads, got "
                    f"{len(own)} layers of {sorted({len(site.weight) for site in own})}"
                )
            for layer, (weight, coherence) in enumerate(own):
                if (
                    not ((weight >= 0) & (weight < torch.inf)).all()
                    or not ((coherence >= 1) & (coherence < torch.inf)).all()
                ):
                    raise ValueError(
                        f"sensitivities of {name} of layer {layer} must be finite, weights >= 0 and coherences >= 1, "
                        f"got {weight.tolist()} and {coherence.tolist()}"
                    )
