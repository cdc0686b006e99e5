"""Run time of a run, summed over all its resumes."""

import time
from collections.abc import Callable


class RunClock:
    """Two clocks: one of the whole fit, one that is paused in validation. Both stand until :meth:`start`.

    Args:
        now: seconds, from any origin.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds = self._training_seconds = 0.0  # up to when the clocks last stood
        self._since: float | None = None
        self._training_since: float | None = None

    @property
    def seconds(self) -> float:
        """Of the whole fit."""
        return self._seconds + (0.0 if self._since is None else self._now() - self._since)

    @property
    def training_seconds(self) -> float:
        """Without pauses."""
        return self._training_seconds + (0.0 if self._training_since is None else self._now() - self._training_since)

    def start(self) -> None:
        """Starts both."""
        self._since = self._training_since = self._now()

    def pause(self) -> None:
        """Stops the one of training."""
        self._training_seconds, self._training_since = self.training_seconds, None

    def proceed(self) -> None:
        """Starts it again, if the other runs."""
        if self._since is not None and self._training_since is None:
            self._training_since = self._now()

    def stop(self) -> None:
        """Stops both."""
        self.pause()
        self._seconds, self._since = self.seconds, None

    def go_on_from(self, seconds: float, training_seconds: float) -> None:
        """Adds the time that a run took before it was resumed."""
        self._seconds, self._training_seconds = seconds, training_seconds
