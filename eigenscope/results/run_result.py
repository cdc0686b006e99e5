"""Result of a finished training run: metrics of its best and last epoch, time, parameters."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self


@dataclass(frozen=True)
class MonitoredMetric:
    """The logged metric that a run is judged by.

    Args:
        name: as logged, ``val/`` and a leaf; ``train/`` and the same leaf is its counterpart in training.
        mode: whether ``max`` or ``min`` is best.
        percent: the metric is a fraction that people read as per cent.

    Raises:
        ValueError: the name does not begin with ``val/``, or the mode is unknown.
    """

    name: str = "val/acc"
    mode: Literal["max", "min"] = "max"
    percent: bool = True

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not self.name.startswith("val/"):
            raise ValueError(f"monitor.name must begin with 'val/', got {self.name!r}")
        if self.mode not in ("max", "min"):
            raise ValueError(f"monitor.mode must be 'max' or 'min', got {self.mode!r}")

    @property
    def train_name(self) -> str:
        """The counterpart in training."""
        return "train/" + self.name.removeprefix("val/")

    @property
    def unit(self) -> str:
        """``" %"`` or nothing, to follow a heading."""
        return " %" if self.percent else ""

    def shown(self, value: float) -> float:
        """The metric as people read it."""
        return 100 * value if self.percent else value

    def text(self, value: float, sign: str = "") -> str:
        """The metric as people read it; ``sign="+"`` shows the sign of a difference."""
        return f"{self.shown(value):{sign}.2f}" if self.percent else f"{value:{sign}.4g}"

    def best(self, values: list[tuple[float, int]]) -> tuple[float, int]:
        """The best (metric, epoch), the earliest on a tie."""
        return (max if self.mode == "max" else min)(values, key=lambda pair: pair[0])


@dataclass(frozen=True)
class EpochResult:
    """One epoch, counted from 1: every scalar logged in it by name, and its seconds with validation.

    Figures of validation are there only if the epoch was validated. ``restarts``: scores from this epoch on are not
    comparable with those before, as when a curriculum makes the task harder.
    """

    epoch: int
    metrics: dict[str, float]
    seconds: float
    restarts: bool = False


@dataclass(frozen=True)
class RunResult:
    """Result of one run.

    Args:
        name: of the experiment.
        seed: of the run; None if it was not seeded.
        parameters: all of them, frozen ones included.
        finished: ISO 8601 time with zone.
        log_dir: folder of the run's logs; empty if it had none.
        epochs: at least one, at least one of them with the score.
        score: what the run is judged by.
        precision: that the run computed in, as Lightning names it.
        optimizer: class names of those that took the steps, such as ``SOAP+AdamW``.
        protocol: what it was validated on, as the data module names it; empty if it does not say.
        test: metrics of the test set at the best epoch, read once after training; empty if it was not read.
        label: what the run has otherwise than its configuration file, in parts.
        data: what it was trained and validated on; empty if unknown.
        validated: the part of the validation set that it was validated on; empty if it was the whole.
        others: how many cores other processes used while it trained, on average; None if unknown.
        busy: whether that was so much that its seconds per epoch are not to be relied on.

    Raises:
        ValueError: no epoch has the score.
    """

    name: str
    seed: int | None
    parameters: int
    finished: str
    log_dir: str
    epochs: tuple[EpochResult, ...]
    score: MonitoredMetric = MonitoredMetric()
    precision: str = ""
    optimizer: str = ""
    protocol: str = ""
    test: dict[str, float] = field(default_factory=dict)
    label: tuple[str, ...] = ()
    data: str = ""
    validated: str = ""
    others: float | None = None
    busy: bool = False

    def __post_init__(self) -> None:
        """Checks that there is something to report."""
        if not scored(self.epochs, self.score):
            raise ValueError(f"run {self.name!r} has no epoch with {self.score.name!r}")

    @property
    def best(self) -> tuple[float, int]:
        """The best score and its epoch, the earliest on a tie."""
        return self.score.best(scored(self.epochs, self.score))

    @property
    def last(self) -> float:
        """The score of the last epoch that has one."""
        return scored(self.epochs, self.score)[-1][0]

    @property
    def test_score(self) -> float | None:
        """The score's counterpart on the test set, if that was read."""
        return self.test.get("test/" + self.score.name.removeprefix("val/"))

    @property
    def seconds_per_epoch(self) -> float:
        """Median over epochs."""
        return statistics.median(row.seconds for row in self.epochs)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """From the plain values of its fields; keys that a later version may have added are passed over.

        Raises:
            KeyError, TypeError: a field is missing.
        """
        known = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        epochs = tuple(EpochResult(**row) for row in known["epochs"])
        label = tuple(known.get("label", ()))
        return cls(**known | {"epochs": epochs, "score": MonitoredMetric(**known["score"]), "label": label})


@dataclass(frozen=True)
class StoppedRun:
    """A run that was stopped by a NaN or Inf: after how many steps, and what was found."""

    step: int
    reason: str


def recent_seconds(epochs: Sequence[EpochResult]) -> float:
    """What an epoch takes now: the median of the last three."""
    return statistics.median(row.seconds for row in epochs[-3:])


def run_title(name: str, label: Sequence[str]) -> str:
    """What a run is called: the experiment's name and what differs, ``demo + cv/align_hand, clamp=null``."""
    return " ".join(filter(None, [name, ", ".join(label)]))


def scored(epochs: tuple[EpochResult, ...] | list[EpochResult], score: MonitoredMetric) -> list[tuple[float, int]]:
    """(score, epoch) of the epochs that have the score, in order; only those that compare with the last one."""
    start = max((place for place, row in enumerate(epochs) if row.restarts), default=0)
    epochs = epochs[start:]
    return [(row.metrics[score.name], row.epoch) for row in epochs if score.name in row.metrics]
