"""Statistics of a comparison: means over seeds and paired confidence intervals between arms."""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import ttest_rel

from eigenscope.results.run_result import MonitoredMetric, RunResult
from eigenscope.text import text_table

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean paired difference and the half-width of its 95 % interval by Student's t; None with a single pair."""

    mean: float
    half_width: float | None

    @classmethod
    def paired(cls, arm: Sequence[float], reference: Sequence[float]) -> "PairedDifference":
        """Of two equally long sequences, paired by position."""
        mean = statistics.fmean(a - b for a, b in zip(arm, reference, strict=True))
        if len(arm) == 1:
            return cls(mean, None)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of equal differences: no spread
            interval = ttest_rel(arm, reference).confidence_interval(CONFIDENCE)
        return cls(mean, float(interval.high - interval.low) / 2)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds (None with one seed), and the difference to the first arm."""

    mean: float
    deviation: float | None
    difference: PairedDifference | None


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds, in the score's own unit (accuracies as percentages).

    ``test`` is None unless every run of every arm read the test set at its best epoch. Differences are to the first
    arm, None for the first arm itself.
    """

    name: str
    score: MonitoredMetric
    seeds: tuple[int, ...]
    best: Spread
    last: Spread
    test: Spread | None
    parameters: int
    seconds_per_epoch: float


def compare_arms(arms: Mapping[str, Mapping[int, RunResult]]) -> list[ArmSummary]:
    """Summarises arms and their paired differences to the first one.

    Args:
        arms: name to (seed to result), every arm with the same seeds.

    Raises:
        ValueError: there is no arm or no seed, or the arms have different seeds or scores.
    """
    seeds = [tuple(sorted(results)) for results in arms.values()]
    if not seeds or not seeds[0] or len(set(seeds)) > 1:
        raise ValueError(f"arms must share the same seeds, at least one, got {dict(zip(arms, seeds, strict=True))}")
    runs = {name: [results[seed] for seed in seeds[0]] for name, results in arms.items()}
    scores = {run.score for results in runs.values() for run in results}
    if len(scores) > 1:
        raise ValueError(f"arms must be judged by one score, got {', '.join(sorted(map(str, scores)))}")
    (score,) = scores
    best = {name: [score.shown(run.best[0]) for run in results] for name, results in runs.items()}
    last = {name: [score.shown(run.last) for run in results] for name, results in runs.items()}
    test = {
        name: [score.shown(run.test_score) for run in results if run.test_score is not None]
        for name, results in runs.items()
    }
    all_tested = all(len(values) == len(seeds[0]) for values in test.values())
    first = next(iter(arms))

    def spread(values: Mapping[str, Sequence[float]], name: str) -> Spread:
        deviation = statistics.stdev(values[name]) if len(values[name]) > 1 else None
        difference = PairedDifference.paired(values[name], values[first]) if name != first else None
        return Spread(statistics.fmean(values[name]), deviation, difference)

    return [
        ArmSummary(
            name=name,
            score=score,
            seeds=seeds[0],
            best=spread(best, name),
            last=spread(last, name),
            test=spread(test, name) if all_tested else None,
            parameters=results[0].parameters,
            seconds_per_epoch=statistics.fmean(run.seconds_per_epoch for run in results),
        )
        for name, results in runs.items()
    ]


def comparison_table(summaries: Sequence[ArmSummary]) -> str:
    """The comparison as text: a row per arm, then a row per difference to the first arm."""
    first = summaries[0]
    leaf, unit = first.score.leaf, first.score.unit
    digits = ".2f" if first.score.percent else ".4g"
    tested = first.test is not None

    def mean(spread: Spread | None) -> list[str]:
        if spread is None:
            return []
        deviation = f" ± {spread.deviation:{digits}}" if spread.deviation is not None else ""
        return [f"{spread.mean:{digits}}{deviation}"]

    def difference(spread: Spread | None) -> list[str]:
        if spread is None or spread.difference is None:
            return []
        value, half = spread.difference.mean, spread.difference.half_width
        interval = f"({value - half:+{digits}} to {value + half:+{digits}})" if half is not None else "(one seed)"
        return [f"{value:+{digits}} {interval}"]

    titles = [f"best val {leaf}{unit}", f"last val {leaf}{unit}", *([f"test {leaf}{unit}"] if tested else [])]
    text = text_table(
        ["arm", *titles, "parameters", "s/epoch", "seeds"],
        [
            [
                arm.name,
                *(cell for spread in (arm.best, arm.last, arm.test) for cell in mean(spread)),
                f"{arm.parameters:,}",
                f"{arm.seconds_per_epoch:.1f}",
                " ".join(map(str, arm.seeds)),
            ]
            for arm in summaries
        ],
    )
    if len(summaries) == 1:
        return text
    points = "points" if first.score.percent else "units"
    titles = ["best", "last", *(["test"] if tested else [])]
    differences = text_table(
        [f"difference in {points}, paired (95 % interval)", *titles, "parameters", "s/epoch"],
        [
            [
                f"{arm.name} − {first.name}",
                *(cell for spread in (arm.best, arm.last, arm.test) for cell in difference(spread)),
                f"{arm.parameters - first.parameters:+,}",
                f"{arm.seconds_per_epoch / first.seconds_per_epoch:.2f}×",
            ]
            for arm in summaries[1:]
        ],
    )
    return f"{text}\n\n{differences}"
