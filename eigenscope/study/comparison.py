"""The head-to-head of several arms that were trained with the same seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from eigenscope.study.result import RunResult
from eigenscope.study.table import text_table

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences in percentage points, with the half-width of its confidence interval.

    ``half_width`` is of the 95 % interval by Student's t over the pairs; None with a single pair.
    """

    points: float
    half_width: float | None

    @classmethod
    def paired(cls, arm: Sequence[float], reference: Sequence[float]) -> "Difference":
        """Of two equally long sequences of accuracies (fractions), paired by position."""
        differences = [100 * (a - b) for a, b in zip(arm, reference, strict=True)]
        mean = statistics.fmean(differences)
        if len(differences) == 1:
            return cls(mean, None)
        quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
        return cls(mean, quantile * statistics.stdev(differences) / math.sqrt(len(differences)))

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.points:+.2f} (one seed: no interval)"
        return f"{self.points:+.2f} ({self.points - self.half_width:+.2f} to {self.points + self.half_width:+.2f})"


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds: accuracies are percentages, (mean, sample standard deviation or None with one seed).

    The differences are to the first arm, None for the first arm itself.
    """

    name: str
    seeds: tuple[int, ...]
    best: tuple[float, float | None]
    last: tuple[float, float | None]
    parameters: int
    seconds_per_epoch: float
    best_difference: Difference | None
    last_difference: Difference | None


def compare_arms(arms: Mapping[str, Mapping[int, RunResult]]) -> list[ArmSummary]:
    """Summarises arms and their paired differences to the first one.

    Args:
        arms: name to (seed to result), every arm with the same seeds.

    Raises:
        ValueError: there is no arm or no seed, or the arms have different seeds.
    """
    seeds = [tuple(sorted(results)) for results in arms.values()]
    if not seeds or not seeds[0] or len(set(seeds)) > 1:
        raise ValueError(f"arms must share the same seeds, at least one, got {dict(zip(arms, seeds, strict=True))}")
    best = {name: [results[seed].best[0] for seed in seeds[0]] for name, results in arms.items()}
    last = {name: [results[seed].last for seed in seeds[0]] for name, results in arms.items()}
    first = next(iter(arms))
    return [
        ArmSummary(
            name=name,
            seeds=seeds[0],
            best=_spread(best[name]),
            last=_spread(last[name]),
            parameters=results[seeds[0][0]].parameters,
            seconds_per_epoch=statistics.fmean(result.seconds_per_epoch for result in results.values()),
            best_difference=Difference.paired(best[name], best[first]) if name != first else None,
            last_difference=Difference.paired(last[name], last[first]) if name != first else None,
        )
        for name, results in arms.items()
    ]


def _spread(accuracies: Sequence[float]) -> tuple[float, float | None]:
    percent = [100 * accuracy for accuracy in accuracies]
    return statistics.fmean(percent), statistics.stdev(percent) if len(percent) > 1 else None


def comparison_table(summaries: Sequence[ArmSummary]) -> str:
    """The head-to-head as text: a row per arm, then a row per difference to the first arm."""

    def spread(value: tuple[float, float | None]) -> str:
        return f"{value[0]:.2f}" + (f" ± {value[1]:.2f}" if value[1] is not None else "")

    first = summaries[0]
    header = ["arm", "best val %", "last val %", "parameters", "s/epoch", "seeds"]
    rows = [
        [
            arm.name,
            spread(arm.best),
            spread(arm.last),
            f"{arm.parameters:,}",
            f"{arm.seconds_per_epoch:.1f}",
            " ".join(map(str, arm.seeds)),
        ]
        for arm in summaries
    ]
    differences = [
        [
            f"{arm.name} − {first.name}",
            str(arm.best_difference),
            str(arm.last_difference),
            f"{arm.parameters - first.parameters:+,}",
            f"{arm.seconds_per_epoch / first.seconds_per_epoch:.2f}×",
        ]
        for arm in summaries[1:]
    ]
    text = text_table(header, rows)
    if differences:
        header = ["difference in points", "best (95 % interval)", "last (95 % interval)", "parameters", "s/epoch"]
        text += "\n\n" + text_table(header, differences)
    return text
