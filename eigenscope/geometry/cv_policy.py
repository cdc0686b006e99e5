"""CV loss terms of a point set: target, phases of weight, and the reported soft-hand rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from eigenscope.geometry.volume_cv import expected_cv


@dataclass(frozen=True)
class Phase:
    """A phase of training with one weight of the CV loss term.

    Args:
        weight: of (CV − target)² at the end of the ramp.
        epochs: length, whole or not; None lasts to the end of training.
        ramp: the first so many epochs of the phase, in which the weight moves linearly from that of the phase before
            (0 before the first).

    Raises:
        ValueError: a number is negative, or the ramp is longer than the phase.
    """

    weight: float
    epochs: float | None = None
    ramp: float = 0.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight of a phase must be finite and at least 0, got {self.weight}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs of a phase must be above 0, got {self.epochs}")
        if not 0 <= self.ramp < math.inf or (self.epochs is not None and self.ramp > self.epochs):
            raise ValueError(f"ramp of a phase must be between 0 and its epochs, got {self.ramp}")


@dataclass(frozen=True)
class SoftHand:
    """The reported rule, loss ← (1 + boost·p)·loss + penalty·(1 − p)·(CV − target)², kept for comparison.

    p = exp(−(CV − target)² / (2 width²)) is the proximity of the last *measured* CV, which carries no gradient: the
    first term scales the loss, which Adam cancels, and the second is a constant. It is nearly inert.
    """

    boost: float = 0.5
    penalty: float = 0.3
    width: float = 0.15

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in (("boost", self.boost), ("penalty", self.penalty)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} of a soft hand must be finite and at least 0, got {value}")
        if not 0 < self.width < math.inf:
            raise ValueError(f"width of a soft hand must be finite and above 0, got {self.width}")

    def apply(self, loss: Tensor, cv: float, target: float) -> Tensor:
        """The loss that the rule makes of ``loss``."""
        p = proximity(cv, target, self.width)
        return (1 + self.boost * p) * loss + self.penalty * (1 - p) * (cv - target) ** 2


def proximity(cv: float, target: float, width: float = SoftHand.width) -> float:
    """exp(−(cv − target)² / (2 width²)), 1 at the target."""
    deviation = (cv - target) / width
    return math.exp(-deviation * deviation / 2)


@dataclass(frozen=True)
class CVPolicy:
    """Schedule of the CV loss term of one point set: target and phases of weight.

    Args:
        target: CV, or ``auto`` for that of independent uniform points in the point set's dimension.
        phases: of the term weight·(CV − target)², which carries gradient; none adds no such term.
        soft_hand: the reported rule beside it, or None.

    Raises:
        ValueError: the target is not positive, or a phase follows one without end.
    """

    target: float | Literal["auto"] = "auto"
    phases: Sequence[Phase] = ()
    soft_hand: SoftHand | None = None

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.target != "auto" and not 0 < self.target < math.inf:
            raise ValueError(f"target must be 'auto' or finite and above 0, got {self.target}")
        if any(phase.epochs is None for phase in self.phases[:-1]):
            raise ValueError("phases: every phase but the last needs a number of epochs")

    def target_in(self, dim: int) -> float:
        """The target for points in R^dim."""
        return expected_cv(dim) if self.target == "auto" else self.target

    def weight_at(self, epoch: float) -> float:
        """The weight of the term after so many epochs, whole or not; after the last phase it stays."""
        start, before = 0.0, 0.0
        for phase in self.phases:
            if phase.epochs is None or epoch < start + phase.epochs:
                share = min(1.0, (epoch - start) / phase.ramp) if phase.ramp else 1.0
                return before + share * (phase.weight - before)
            start, before = start + phase.epochs, phase.weight
        return before
