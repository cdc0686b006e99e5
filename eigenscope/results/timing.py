"""What seconds per epoch of a comparison are worth, and whether its scores compare, in sentences."""

import os
from collections.abc import Mapping

from eigenscope.results.run_result import RunResult


def timing_notes(arms: Mapping[str, Mapping[int, RunResult]]) -> list[str]:
    """When seconds per epoch were taken, in which order, and whether the machine was busy.

    Args:
        arms: name to (seed to result).
    """
    runs = sorted(
        (
            (result.finished, f"{arm} seed {seed}", arm, result)
            for arm, each in arms.items()
            for seed, result in each.items()
        ),
        key=lambda run: run[0],
    )
    first, last = (finished[:16].replace("T", " ") for finished in (runs[0][0], runs[-1][0]))
    when = f"ended at {first} UTC" if first == last else f"ended between {first} and {last} UTC"
    order = "in this order: " + ", ".join(name for _, name, _, _ in runs)
    how = "s/epoch is the median over a run's epochs, validation included, averaged over seeds"
    notes = [f"{how}. Runs {when}, {order}."]
    if len(arms) > 1 and not _take_turns([arm for _, _, arm, _ in runs]):
        notes.append(
            "The arms did not take turns, so that a change of the machine's load over time is in their seconds."
        )
    measured = {name: result.others for _, name, _, result in runs if result.others is not None}
    busy = [f"{name} ({result.others:.1f} cores)" for _, name, _, result in runs if result.busy and result.others]
    if busy:
        notes.append(
            f"Warning: other processes kept the machine busy during {', '.join(busy)}: seconds per epoch are not to be "
            "relied on"
        )
    elif measured:
        notes.append(f"Other processes used at most {max(measured.values()):.1f} of {os.cpu_count()} cores meanwhile.")
    if not measured:
        notes.append("How busy other processes kept the machine is not known.")
    elif len(measured) < len(runs):
        unknown = [name for _, name, _, result in runs if result.others is None]
        notes.append(f"The load of the machine is not known for {', '.join(unknown)}.")
    return notes


def unlike_scores(runs: Mapping[str, RunResult]) -> list[str]:
    """Warnings for runs whose scores do not compare because they were validated otherwise.

    Args:
        runs: by their names.
    """
    sentences = []
    for aspect, values in {
        "by the same protocol": {name: run.protocol for name, run in runs.items()},
        "on the same part of the validation set": {name: run.validated or "all of it" for name, run in runs.items()},
    }.items():
        told = "; ".join(
            f"{value} ({', '.join(name for name, other in values.items() if other == value)})"
            for value in dict.fromkeys(values.values())
        )
        if len(set(values.values())) > 1:
            sentences.append(f"Warning: these runs were not validated {aspect}: {told}")
    return sentences


def _take_turns(arms: list[str]) -> bool:
    """Whether no arm had all its runs before another had its first."""
    spans = [(arms.index(arm), len(arms) - 1 - arms[::-1].index(arm)) for arm in set(arms)]
    return all(start <= other_end for start, _ in spans for _, other_end in spans)
