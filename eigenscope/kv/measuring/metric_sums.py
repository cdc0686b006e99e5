"""Accumulated metrics of KV codecs: errors of keys, values and attention, summed over batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

BOUND_BITS = torch.linspace(0, 8, 65, dtype=torch.float64)  # bits per element at which the bound is taken
_SUMS = ("stored", "elements", "before", "wrong", "energy")  # of keys, then of values
_ATTENTION = ("squares", "divergences", "cosines", "heads")
_NETWORK = ("agreeing", "accuracy", "divergence", "predictions")
_OF_LOGITS = ("top1_agreement", "accuracy_difference", "logit_kl")


@dataclass
class KVMetricSums:
    """Sums of codec metrics over samples, which add up over batches and over processes.

    Args:
        codecs: their names.
        layers: their names.

    Attributes:
        tokens: (codecs, layers, 2, 5) float64: bytes stored, elements, bytes before, squared error and squared length,
            of keys and of values.
        attention: (codecs, layers, 4): squared score errors, divergences, cosines, and how many heads they are of.
        network: (codecs, 4): predictions that stay, gain of right ones, divergences, and how many predictions.
        bound: (layers, 2, 65): squared error of the bound at :data:`BOUND_BITS`.
    """

    codecs: Sequence[str]
    layers: Sequence[str]
    tokens: Tensor = field(init=False)
    attention: Tensor = field(init=False)
    network: Tensor = field(init=False)
    bound: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.codecs), len(self.layers))
        self.tokens = torch.zeros(*shape, 2, len(_SUMS), dtype=torch.float64)
        self.attention = torch.zeros(*shape, len(_ATTENTION), dtype=torch.float64)
        self.network = torch.zeros(shape[0], len(_NETWORK), dtype=torch.float64)
        self.bound = torch.zeros(shape[1], 2, len(BOUND_BITS), dtype=torch.float64)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with ``function`` of each tensor of sums, such as the sum over processes."""
        for name in ("tokens", "attention", "network", "bound"):
            setattr(self, name, function(getattr(self, name)))
        return self

    def by_layer(self) -> dict[str, Tensor]:
        """Measures by name, each (codecs, layers), NaN where nothing was measured; see :meth:`overall`."""
        return _measures(self.tokens, self.attention, self.bound.expand(len(self.codecs), -1, -1, -1))

    def overall(self) -> dict[str, Tensor]:
        """Measures by name, each (codecs,), over all layers.

        Bits are per element, stored state included; ``ratio`` is bytes before over bytes stored; errors are relative by
        the Frobenius norm, ``bound_keys`` and ``bound_values`` those of the rate–distortion bound at the same bits.
        """
        counted = self.tokens[..., :1, _SUMS.index("elements")].unsqueeze(-1) > 0
        bound = torch.where(counted, self.bound, 0).sum(1)
        found = _measures(self.tokens.sum(1), self.attention.sum(1), bound)
        agreeing, accuracy, divergence, predictions = self.network.unbind(-1)
        means = [x / predictions for x in (agreeing, accuracy, divergence)]
        return found | dict(zip(_OF_LOGITS, means, strict=True))

    def present(self, measure: str, values: Tensor) -> Tensor:
        """Which of the values (codecs,) of :meth:`overall` were measured: NaN is not, unless logits were NaN."""
        predicted = self.network[:, _NETWORK.index("predictions")] > 0
        return predicted if measure in _OF_LOGITS else ~values.isnan()

    def bound_curves(self) -> Tensor:
        """Relative error of the bound at :data:`BOUND_BITS`, (layers, 2, 65)."""
        energy = self.tokens[..., _SUMS.index("energy")].amax(0)  # the same for every codec that was measured
        return (self.bound / energy[..., None]).sqrt()


def logit_change(exact: Tensor, decoded: Tensor, labels: Tensor) -> Tensor:
    """What decoded keys and values change at the output, as a row of :attr:`KVMetricSums.network`.

    Args:
        exact: (..., classes) logits.
        decoded: the same with other keys and values.
        labels: (...) integer; what is below 0 is no label and left out.

    Returns:
        (4,) float64 on the CPU: predictions that stay, right predictions gained, the sum of the divergences of the
        decoded distribution from the exact one in nats, and the number of predictions. Logits of which one is NaN
        predict nothing: they neither agree nor are right, and their divergence is NaN.
    """
    kept = labels >= 0
    exact, decoded, labels = exact[kept].double(), decoded[kept].double(), labels[kept]
    logs, logs_hat = exact.log_softmax(-1), decoded.log_softmax(-1)
    best, best_hat = exact.argmax(-1), decoded.argmax(-1)
    known, known_hat = (~x.isnan().any(-1) for x in (exact, decoded))  # argmax takes the first NaN for the largest
    gained = ((best_hat == labels) & known_hat).double() - ((best == labels) & known).double()
    terms = torch.where(logs == -torch.inf, 0, logs.exp() * (logs - logs_hat))  # a class that is ruled out has no part
    divergence = terms.sum(-1).clamp_min(0)
    rows = [(best == best_hat) & known & known_hat, gained, divergence, torch.ones_like(gained)]
    return torch.stack([row.double().sum() for row in rows]).cpu()


def _measures(tokens: Tensor, attention: Tensor, bound: Tensor) -> dict[str, Tensor]:
    stored, elements, before, wrong, energy = tokens.unbind(-1)  # (..., 2) each
    squares, divergences, cosines, heads = attention.unbind(-1)
    bits = 8 * stored / elements
    nothing = torch.where(elements > 0, 0.0, torch.nan).double()  # what is zero has no error; what is not there, NaN
    errors = torch.where(wrong > 0, (wrong / energy).sqrt(), nothing)
    bounds = torch.where(energy > 0, (_at(bound, bits) / energy).sqrt(), nothing)
    return {
        "ratio": before.sum(-1) / stored.sum(-1),
        "bits_per_element": 8 * stored.sum(-1) / elements.sum(-1),
        "bits_keys": bits[..., 0],
        "bits_values": bits[..., 1],
        "error_keys": errors[..., 0],
        "error_values": errors[..., 1],
        "bound_keys": bounds[..., 0],
        "bound_values": bounds[..., 1],
        "score_rmse": (squares / heads).sqrt(),
        "attention_kl": divergences / heads,
        "output_cosine": cosines / heads,
    }


def _at(bound: Tensor, bits: Tensor) -> Tensor:
    """The curve (..., 65) at bits (...), between its points along its logarithm and beyond them at 6 dB a bit."""
    step = BOUND_BITS[1] - BOUND_BITS[0]
    place = (bits.nan_to_num() / step).clamp(0, len(BOUND_BITS) - 1)
    left = place.floor().clamp_max(len(BOUND_BITS) - 2).long()
    logs = bound.clamp_min(torch.finfo(torch.float64).tiny).log2()
    low, high = (logs.gather(-1, (left + k)[..., None])[..., 0] for k in (0, 1))
    beyond = (bits.nan_to_num() - BOUND_BITS[-1]).clamp_min(0)
    return torch.exp2(low + (place - left) * (high - low) - 2 * beyond)
