"""Gradient-norm spike detection."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

_WINDOW = 50  # norms of the running median
_LEAST = 10  # of them before a jump can be told


class SpikeDetector:
    """Detects the first step at which the gradient norm exceeds a multiple of its running median.

    The median is that of the last 50 finite norms before the step, of which there must be at least ten. Where it is
    zero, as while nothing has a gradient, there is no scale to exceed and no spike.

    Args:
        factor: norms above ``factor`` times the median are a spike; None finds none.

    Attributes:
        norms: the last 50, oldest first.

    Raises:
        ValueError: ``factor`` is not above 1.
    """

    def __init__(self, factor: float | None = 10.0) -> None:
        if factor is not None and not factor > 1:
            raise ValueError(f"spike_factor must be above 1 or None, got {factor}")
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=_WINDOW)
        self._inside = False

    @property
    def median(self) -> float | None:
        """Of the norms so far, None while there are fewer than ten."""
        return median(self.norms) if len(self.norms) >= _LEAST else None

    def update(self, norm: float) -> bool:
        """Takes the norm of the next step, and says whether a spike begins; what is not finite is passed over."""
        if not math.isfinite(norm):
            return False
        usual = self.median
        above = self.factor is not None and usual is not None and norm > self.factor * usual > 0
        begins = above and not self._inside
        self._inside = above
        self.norms.append(norm)
        return begins

    def state_dict(self) -> dict[str, object]:
        """The norms, and whether the last was a spike's."""
        return {"norms": list(self.norms), "inside": self._inside}

    def load_state_dict(self, state: dict[str, Sequence[float] | bool]) -> None:
        """Restores the state."""
        norms, inside = state["norms"], state["inside"]
        assert isinstance(norms, Sequence)
        self.norms = deque(norms, maxlen=_WINDOW)
        self._inside = bool(inside)
