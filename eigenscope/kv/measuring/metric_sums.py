"""Accumulated metrics of KV codecs: errors of keys, values and attention, summed over batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

BOUND_BITS = torch.linspace(0, 8, 65, dtype=torch.float64)  # bits per element at which the bound is taken
_SUMS = ("stored", "elements", "wrong", "energy")  # of keys, then of values
_ATTENTION = ("squares", "divergences", "cosines", "heads")
_NETWORK = ("agreeing", "accuracy", "divergence", "predictions")
_PAIRED = ("samples", "gains²", "gains · predictions", "predictions²")
_OF_LOGITS = ("top1_agreement", "accuracy_difference", "logit_kl")


@dataclass
class KVMetricSums:
    """Sums of codec metrics over samples, which add up over batches and over processes.

    Args:
        codecs: their names.
        layers: their names.

    Attributes:
        tokens: (codecs, layers, 2, 4) float64: bytes stored, elements, squared error and squared length, of keys and of
            values.
        attention: (codecs, layers, 4): squared score errors, divergences, cosines, and how many heads they are of.
        network: (codecs, 4): predictions that stay, gain of right ones, divergences, and how many predictions.
        paired: (codecs, 4): samples, and sums over them of the squared gain of right predictions, of its product with
            the number of predictions and of the square of that.
        bound: (layers, 2, 65): squared error of the bound at :data:`BOUND_BITS`.
    """

    codecs: Sequence[str]
    layers: Sequence[str]
    tokens: Tensor = field(init=False)
    attention: Tensor = field(init=False)
    network: Tensor = field(init=False)
    paired: Tensor = field(init=False)
    bound: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.codecs), len(self.layers))
        self.tokens = torch.zeros(*shape, 2, len(_SUMS), dtype=torch.float64)
        self.attention = torch.zeros(*shape, len(_ATTENTION), dtype=torch.float64)
        self.network = torch.zeros(shape[0], len(_NETWORK), dtype=torch.float64)
        self.paired = torch.zeros(shape[0], len(_PAIRED), dtype=torch.float64)
        self.bound = torch.zeros(shape[1], 2, len(BOUND_BITS), dtype=torch.float64)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with ``function`` of each tensor of sums, such as the sum over processes."""
        for name in ("tokens", "attention", "network", "paired", "bound"):
            setattr(self, name, function(getattr(self, name)))
        return self

    def by_layer(self) -> dict[str, Tensor]:
        """Measures by name, each (codecs, layers), NaN where nothing was measured; see :meth:`overall`."""
        return _measures(self.tokens, self.attention, self.bound.expand(len(self.codecs), -1, -1, -1))

    def overall(self) -> dict[str, Tensor]:
        """Measures by name, each (codecs,), over all layers.

        Bits are per element, stored state included; ``ratio`` is 16 over them; errors are relative by the Frobenius
        norm, ``bound_keys`` and ``bound_values`` those of the rate–distortion bound at the same bits;
        ``accuracy_low`` and ``accuracy_high`` are the ends of :func:`accuracy_interval`.
        """
        counted = self.tokens[..., :1, _SUMS.index("elements")].unsqueeze(-1) > 0
        bound = torch.where(counted, self.bound, 0).sum(1)
        found = _measures(self.tokens.sum(1), self.attention.sum(1), bound)
        agreeing, accuracy, divergence, predictions = self.network.unbind(-1)
        means = [x / predictions for x in (agreeing, accuracy, divergence)]
        low, high = accuracy_interval(accuracy, predictions, *self.paired.unbind(-1))
        return found | dict(zip(_OF_LOGITS, means, strict=True)) | {"accuracy_low": low, "accuracy_high": high}

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
    best, best_hat = _best(exact), _best(decoded)
    gained = _gained(best, best_hat, labels)
    terms = torch.where(logs == -torch.inf, 0, logs.exp() * (logs - logs_hat))  # a class that is ruled out has no part
    divergence = terms.sum(-1).clamp_min(0)
    rows = [(best == best_hat) & (best >= 0), gained, divergence, torch.ones_like(gained)]
    return torch.stack([row.double().sum() for row in rows]).cpu()


def paired_change(exact: Tensor, decoded: Tensor, labels: Tensor) -> Tensor:
    """How the gain of right predictions spreads over samples, as a row of :attr:`KVMetricSums.paired`.

    Args:
        exact: (B, ..., classes) logits.
        decoded: the same with other keys and values.
        labels: (B, ...) integer; what is below 0 is no label and left out.

    Returns:
        (4,) float64 on the CPU. A sample without labels is none.
    """
    kept = (labels >= 0).reshape(len(labels), -1)
    gained = torch.where(labels >= 0, _gained(_best(exact), _best(decoded), labels), 0).reshape(len(labels), -1).sum(-1)
    predictions = kept.sum(-1).double()
    rows = [predictions > 0, gained.square(), gained * predictions, predictions.square()]
    return torch.stack([row.double().sum() for row in rows]).cpu()


def accuracy_interval(
    gained: Tensor, predictions: Tensor, samples: Tensor, squares: Tensor, products: Tensor, squared_predictions: Tensor
) -> tuple[Tensor, Tensor]:
    """Ends of a 95 % interval of the accuracy difference, paired over samples.

    Predictions of one sample, such as the tokens of a text, may depend on each other: the difference is a ratio of sums
    over samples, gains over predictions, and its variance that of such a ratio. As in Agresti & Min (*Simple improved
    confidence intervals for comparing matched proportions*, 2005) half a prediction is added to each of four outcomes,
    gained, lost, right twice and wrong twice: otherwise a few samples of which none changed would have an interval
    of no width. Student's t has as many degrees of freedom as there are samples, and one.

    Args:
        gained: (...) right predictions gained.
        predictions: (...) how many there were.
        samples: (...) with at least one prediction.
        squares: (...) sum over samples of the squared gain.
        products: (...) sum of gain times predictions.
        squared_predictions: (...) sum of squared predictions.

    Returns:
        Lower and upper end, NaN where there are no samples.
    """
    from scipy.special import stdtrit  # a fifth of a second, when there is something to report

    total = predictions + 2
    middle = gained / total
    spread = (squares + 1) - 2 * middle * products + middle.square() * (squared_predictions + 2)
    quantile = torch.from_numpy(stdtrit((samples + 1).numpy(), 0.975))
    half = quantile * spread.clamp_min(0).sqrt() / total
    ends = (middle - half).clamp_min(-1), (middle + half).clamp_max(1)
    return torch.where(samples > 0, ends[0], torch.nan), torch.where(samples > 0, ends[1], torch.nan)


def _best(logits: Tensor) -> Tensor:
    """The class of the largest logit, −1 where one is NaN, which argmax would take for the largest."""
    return torch.where(logits.isnan().any(-1), -1, logits.argmax(-1))


def _gained(best: Tensor, best_hat: Tensor, labels: Tensor) -> Tensor:
    """1 where a right prediction is gained, −1 where one is lost, for labels that are not below 0."""
    return (best_hat == labels).double() - (best == labels).double()


def _measures(tokens: Tensor, attention: Tensor, bound: Tensor) -> dict[str, Tensor]:
    stored, elements, wrong, energy = tokens.unbind(-1)  # (..., 2) each
    squares, divergences, cosines, heads = attention.unbind(-1)
    bits = 8 * stored / elements
    bits_of_both = 8 * stored.sum(-1) / elements.sum(-1)
    nothing = torch.where(elements > 0, 0.0, torch.nan).double()  # what is zero has no error; what is not there, NaN
    errors = torch.where(wrong > 0, (wrong / energy).sqrt(), nothing)
    bounds = torch.where(energy > 0, (_at(bound, bits) / energy).sqrt(), nothing)
    return {
        "ratio": 16 / bits_of_both,
        "bits_per_element": bits_of_both,
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
