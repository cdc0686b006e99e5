"""Subcommand ``compare``: trains every configuration with every seed, one process per run, and compares them."""

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eigenscope.cli.compare_options import CompareOptions, asks_for_class_help, compare_options
from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.planned_run import Config, Outcome, PlannedRun, scoreboards
from eigenscope.cli.run_label import file_parts, watching_callbacks
from eigenscope.files import replace_atomically
from eigenscope.results.environment import unlike_runs
from eigenscope.results.run_result import RunResult, StoppedRun
from eigenscope.results.scoreboard import read_scoreboard, rows_of
from eigenscope.results.scoreboard_table import scoreboard_table
from eigenscope.results.settings import SEED, flat_settings, settings_table
from eigenscope.results.statistics import ArmSummary, compare_arms, comparison_table
from eigenscope.results.timing import timing_notes, unlike_scores
from eigenscope.text import duration, text_table

_SAME_IMAGES = ("data.batch_size", "data.augmentation")  # what of the data leaves the images as they are
_OF_VALIDATION = ("trainer.limit_val_batches", "trainer.overfit_batches")


def compare_main(
    args: list[str], resolve: Callable[[list[str]], Config], fit_parser: Callable[[], Any]
) -> list[ArmSummary]:
    """Runs ``compare``.

    Args:
        args: the command line after ``compare``.
        resolve: turns the arguments of ``fit`` into a full configuration, or raises :class:`UsageError`.
        fit_parser: makes the parser of ``fit``.

    Returns:
        A summary per arm, in the order of the command line; arms with a run that was stopped are left out, and if the
        first is, differences are to the next.

    Raises:
        UsageError: the arguments are wrong; nothing was trained.
        SystemExit: a run failed, a record is damaged, or a signal came.
    """
    if asked := asks_for_class_help(args):
        resolve(asked)
    options = compare_options(args, fit_parser)
    resolved = _resolved(options, resolve)
    settings = {name: flat_settings(config, watching_callbacks(config)) for name, config in resolved.items()}
    for each in settings.values():
        each[SEED] = None  # compare gives the seeds
    notes = _notes(settings)
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    labels = {
        name: [part for part in resolved[name].get("label") or [] if part not in file_parts(files)]
        for name, files in options.arms.items()
    }
    runs = [
        PlannedRun.plan(name, seed, resolved[name], options.folder, labels[name])
        for turn, seed in enumerate(options.seeds)
        for name in (list(options.arms) if turn % 2 == 0 else reversed(options.arms))
    ]
    try:
        outcomes = _train_all(runs)
    except KeyboardInterrupt:  # while another compare trained one
        print("SIGINT ended compare; finished runs are kept", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    return _report(options, runs, outcomes, settings, notes)


def _resolved(options: CompareOptions, resolve: Callable[[list[str]], Config]) -> dict[str, Config]:
    """The configuration of each arm, all of which can be compared."""
    resolved = {}
    for name, files in options.arms.items():
        try:
            resolved[name] = resolve([*(part for file in files for part in ("--config", file)), *options.overrides])
        except UsageError as error:
            raise UsageError(f"arm {name}: {error}") from error
        problem = _unfit(resolved[name])
        if problem is not None:
            raise UsageError(f"compare: arm {name}: {problem}")
    scores = {name: scoreboards(config)[0]["init_args"].get("monitor") or {} for name, config in resolved.items()}
    if len({json.dumps(score) for score in scores.values()}) > 1:
        told = "; ".join(f"{name} by {score.get('mode')} {score.get('name')}" for name, score in scores.items())
        raise UsageError(f"compare: arms must be judged by one score, the monitor of their Scoreboard, got {told}")
    return resolved


def _unfit(config: Config) -> str | None:
    """What keeps a configuration from being compared, said before anything is trained."""
    logger = config["trainer"]["logger"]
    if not isinstance(logger, dict) or not logger["class_path"].endswith("TensorBoardLogger"):
        return "trainer.logger must be one TensorBoardLogger, whose place compare sets"
    if len(scoreboards(config)) != 1:
        return "trainer.callbacks must hold one Scoreboard, which records the result"
    if config["trainer"]["fast_dev_run"]:
        return "trainer.fast_dev_run leaves no result to compare"
    if config.get("ckpt_path") is not None:
        return "ckpt_path: compare trains every run from its beginning; to resume one use fit"
    return None


def _notes(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What about arms as configured keeps their figures from telling what was asked, said before training."""
    notes, names = [], list(settings)
    for place, name in enumerate(names):
        same = [other for other in names[:place] if settings[other] == settings[name]]
        if same:
            notes.append(
                f"Warning: {same[0]} and {name} have equal settings: with equal seeds they train the same network"
            )
    rows = settings_table(settings)
    apart = [
        f"{row[0]} ({', '.join(f'{name} {value}' for name, value in zip(names, row[1], strict=True))})"
        for row in rows
        if row[2].startswith(("data.", *_OF_VALIDATION)) and not row[2].startswith(_SAME_IMAGES)
    ]
    if apart:
        notes.append(f"Warning: the arms' scores are not of the same images: they differ in {', '.join(apart)}")
    return notes


def _report(
    options: CompareOptions,
    runs: Sequence[PlannedRun],
    outcomes: Sequence[tuple[PlannedRun, Outcome]],
    settings: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
) -> list[ArmSummary]:
    """Prints and keeps the head-to-head."""
    names = list(options.arms)
    by_arm = {
        name: {seed: o for seed in options.seeds for run, o in outcomes if (run.arm, run.seed) == (name, seed)}
        for name in names
    }
    whole = {
        name: results
        for name, seeds in by_arm.items()
        if len(results := {s: o for s, o in seeds.items() if isinstance(o, RunResult)}) == len(seeds)
    }
    summaries = compare_arms(whole) if whole else []
    finished = {str(run): outcome for run, outcome in outcomes if isinstance(outcome, RunResult)}
    said = [*notes, *unlike_runs({str(run): run.record().card for run, _ in outcomes}), *unlike_scores(finished)]
    said += timing_notes(whole) if whole else []
    if whole and len(options.seeds) == 1:
        said.append("One seed gives no standard deviation and no interval; give several with --seeds.")
    differing = [[name, *values] for name, values, _ in settings_table(settings)] if len(names) > 1 else []
    table = "\n\n".join(
        [
            *([_stopped_table(outcomes)] if len(whole) < len(names) else []),
            *([comparison_table(summaries)] if whole else []),
            *([text_table(["setting", *names], differing)] if differing else []),
            *(["\n".join(said)] if said else []),
        ]
    )
    target = options.folder / ("-vs-".join(names) + ".json")
    stopped = {str(run): asdict(outcome) for run, outcome in outcomes if isinstance(outcome, StoppedRun)}
    content = {
        "arms": [asdict(summary) for summary in summaries],
        "runs": [str(run.folder) for run, _ in outcomes],
        "stopped": stopped,
        "notes": said,
    }
    with replace_atomically(target) as aside:
        aside.write_text(json.dumps(content, indent=1))
    with replace_atomically(target.with_suffix(".txt")) as aside:
        aside.write_text(table + "\n")
    print(f"\nHead-to-head ({target.with_suffix('.txt')})\n{table}\n", flush=True)
    for path in sorted({scoreboard["init_args"]["path"] for run in runs for scoreboard in scoreboards(run.config)}):
        rows = rows_of(read_scoreboard(Path(path)), [str(run.folder) for run in runs])
        print(f"Scoreboard ({path}), the rows of these runs\n{scoreboard_table(rows)}\n", flush=True)
    return summaries


def _stopped_table(outcomes: Sequence[tuple[PlannedRun, Outcome]]) -> str:
    """The runs that numbers ended which were not finite; their arms are left out of the head-to-head."""
    stopped = [(run, outcome) for run, outcome in outcomes if isinstance(outcome, StoppedRun)]
    rows = [[run.arm, str(run.seed), f"{outcome.step:,}", outcome.reason] for run, outcome in stopped]
    return text_table(["stopped arm", "seed", "after steps", "because"], rows)


def _train_all(runs: Sequence[PlannedRun]) -> list[tuple[PlannedRun, Outcome]]:
    results = []
    seconds: dict[str, float] = {}  # of the latest run of each arm, the latest at the end
    waiting = [run for run in runs if run.outcome() is None]
    for number, run in enumerate(runs, start=1):
        result = run.outcome()
        if result is not None:
            how = "finished" if isinstance(result, RunResult) else f"stopped at step {result.step}"
            print(f"[{number}/{len(runs)}] {run}: already {how} in {run.folder}", flush=True)
        else:
            left = f", about {duration(_left(waiting, seconds))} left" if seconds else ""
            print(f"\n[{number}/{len(runs)}] {run}{left}", flush=True)
            started = time.perf_counter()
            result = run.train()
            seconds.pop(run.arm, None)
            seconds[run.arm] = time.perf_counter() - started
        waiting = [other for other in waiting if other is not run]
        results.append((run, result))
    return results


def _left(waiting: Sequence[PlannedRun], seconds: Mapping[str, float]) -> float:
    """Seconds for the runs to come: each as its arm's latest, or as the latest of all where its arm has none."""
    *_, latest = seconds.values()
    return sum(seconds.get(run.arm, latest) for run in waiting)
