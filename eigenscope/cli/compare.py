"""Subcommand ``compare``: trains every configuration with every seed, one process per run, and compares them."""

import argparse
import copy
import hashlib
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from filelock import FileLock

from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.process.child_process import run_child
from eigenscope.cli.resume.compatibility import find_checkpoint
from eigenscope.files import replace_atomically
from eigenscope.results.environment import unlike_runs
from eigenscope.results.run_metadata import FILE_NAME, RunMetadata
from eigenscope.results.run_result import RunResult, StoppedRun
from eigenscope.results.scoreboard import read_scoreboard, scoreboard_table
from eigenscope.results.statistics import ArmSummary, compare_arms, comparison_table
from eigenscope.text import duration, text_table

Config = dict[str, Any]
Outcome = RunResult | StoppedRun


@dataclass(frozen=True)
class PlannedRun:
    """A run of one arm with one seed: its resolved configuration, and the folder of its logs."""

    arm: str
    seed: int
    config: Config
    folder: Path

    @classmethod
    def plan(cls, arm: str, seed: int, config: Config, root: Path) -> "PlannedRun":
        """Places a run: the folder's name holds a digest of the configuration, wherever that wanted to log to."""
        config = copy.deepcopy(config) | {"seed_everything": seed}
        logger = config["trainer"].pop("logger")
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
        version = f"seed{seed}-{digest}"
        place = {"save_dir": str(root), "name": arm, "version": version}
        config["trainer"]["logger"] = logger | {"init_args": logger["init_args"] | place}
        for scoreboard in _scoreboards(config):
            scoreboard["init_args"]["show"] = False  # once at the end instead of after every run
        return cls(arm, seed, config, root / arm / version)

    def outcome(self) -> Outcome | None:
        """What came of it, if the run was trained to its end or to a number that was not finite."""
        if not (self.folder / FILE_NAME).exists():
            return None
        record = self.record()
        return {"finished": record.result, "stopped": record.stopped}.get(record.outcome)

    def record(self) -> RunMetadata:
        """The run metadata.

        Raises:
            SystemExit: it is damaged.
        """
        try:
            return RunMetadata.load(self.folder)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error

    def train(self) -> Outcome:
        """Trains in a new process; what an earlier attempt left that did not finish is renamed, not removed.

        If another ``compare`` is training the same run, waits for it and takes its result.

        Raises:
            SystemExit: the run failed or left no result, and the message holds a command that shows it; or SIGINT,
                SIGTERM or SIGHUP came, which the run was handed on.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
            return self.outcome() or self._train()

    def _train(self) -> Outcome:
        if self.folder.exists():
            number = sum(1 for _ in self.folder.parent.glob(f"{self.folder.name}-unfinished*"))
            self.folder.rename(self.folder.with_name(f"{self.folder.name}-unfinished{number}"))
        asked = self.folder.with_name(f"{self.folder.name}.yaml")
        asked.write_text(yaml.safe_dump(self.config, sort_keys=False))
        command = [sys.executable, "-m", "eigenscope", "fit", "--config", str(asked)]
        code, signum = run_child(command, is_ready=(self.folder / FILE_NAME).exists)
        outcome = self.outcome()
        if signum is not None:
            print(f"{signum.name} ended {self._left(command)}", file=sys.stderr)
            raise SystemExit(128 + signum)
        if code and not isinstance(outcome, StoppedRun):
            alone = shlex.join([*command, "--trainer.logger", "false"])
            raise SystemExit(f"{self} failed with exit code {code}; finished runs are kept. To see it alone: {alone}")
        if outcome is None:
            raise SystemExit(f"{self} left no result in {self.folder}: it never logged its Scoreboard's score")
        return outcome

    def _left(self, command: list[str]) -> str:
        """What a signal ended, and what is left of it."""
        if self.outcome() is not None:
            return f"compare after {self}, which had come to its own end; the same command continues with the next run"
        ended = f"compare and {self}; finished runs are kept, and given again compare trains this one anew"
        with suppress(ValueError):  # there is no checkpoint
            if self.folder.is_dir():
                fit = shlex.join([*command, "--ckpt_path", str(find_checkpoint(str(self.folder)))])
                return f"{ended}, or takes its result if it is first resumed to its end: {fit}"
        return ended

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


def _scoreboards(config: Config) -> list[Config]:
    callbacks = config["trainer"]["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return [callback for callback in callbacks if callback["class_path"] == "eigenscope.callbacks.Scoreboard"]


def _unfit(config: Config) -> str | None:
    """What keeps a configuration from being compared, said before anything is trained."""
    logger = config["trainer"]["logger"]
    if not isinstance(logger, dict) or not logger["class_path"].endswith("TensorBoardLogger"):
        return "trainer.logger must be one TensorBoardLogger, whose place compare sets"
    if len(_scoreboards(config)) != 1:
        return "trainer.callbacks must hold one Scoreboard, which records the result"
    if config["trainer"]["fast_dev_run"]:
        return "trainer.fast_dev_run leaves no result to compare"
    return None


_OPTION = re.compile(r"^  (?:-\w, )?(--\w+)", re.MULTILINE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"compare: {message}")


def compare_parser() -> argparse.ArgumentParser:
    """The options of ``compare``; what it does not know is an override for ``fit``."""
    parser = _Parser(
        prog="eigenscope compare",
        allow_abbrev=False,
        description="Trains each configuration with each seed and prints the head-to-head: mean ± standard deviation "
        "over seeds, and the paired differences to the first arm. Runs that finished with the same resolved "
        "configuration are not trained again. Any other argument is an override for fit, the same for all arms.",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        action="append",
        required=True,
        metavar="YAML",
        help="an arm; repeat it for the next arm; several files after one --config are layered, the later wins",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds, the same for all arms (default: 0)")
    parser.add_argument(
        "--dir", type=Path, default=Path("runs/compare"), help="where runs are kept (default: %(default)s)"
    )
    return parser


def compare_options() -> list[str]:
    """The options of ``compare``, with their hyphens."""
    return [option for option in _OPTION.findall(compare_parser().format_help()) if option != "--help"]


def compare_main(args: list[str], resolve: Callable[[list[str]], Config]) -> list[ArmSummary]:
    """Runs ``compare``.

    Args:
        args: the command line after ``compare``.
        resolve: turns the arguments of ``fit`` into a full configuration, or raises :class:`UsageError`.

    Returns:
        A summary per arm, in the order of the command line; arms with a run that was stopped are left out, and if the
        first is, differences are to the next.

    Raises:
        UsageError: the arguments are wrong; nothing was trained.
        SystemExit: a run failed, a record is damaged, or a signal came.
    """
    parser = compare_parser()
    options, overrides = parser.parse_known_args(args)
    names = ["+".join(Path(file).stem for file in files) for files in options.config]
    if len(set(names)) < len(names):
        parser.error(f"--config: every arm needs files of another name, got {' '.join(names)}")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: every seed once, got {' '.join(map(str, options.seeds))}")
    if any(override.partition("=")[0] == "--seed_everything" for override in overrides):
        parser.error("--seed_everything: give the seeds with --seeds")
    if any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        parser.error("compare starts the processes of its runs itself: start it once, not under torchrun or srun")

    resolved = {}
    for name, files in zip(names, options.config, strict=True):
        try:
            resolved[name] = resolve([*(part for file in files for part in ("--config", file)), *overrides])
        except UsageError as error:
            raise UsageError(f"arm {name}: {error}") from error
        problem = _unfit(resolved[name])
        if problem is not None:
            parser.error(f"arm {name}: {problem}")
    runs = [PlannedRun.plan(name, seed, resolved[name], options.dir) for seed in options.seeds for name in names]
    try:
        outcomes = _train_all(runs)
    except KeyboardInterrupt:  # while another compare trained one
        print("SIGINT ended compare; finished runs are kept", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    by_arm = {name: {run.seed: outcome for run, outcome in outcomes if run.arm == name} for name in names}
    whole = {
        name: results
        for name, seeds in by_arm.items()
        if len(results := {s: o for s, o in seeds.items() if isinstance(o, RunResult)}) == len(seeds)
    }
    summaries = compare_arms(whole) if whole else []
    table = "\n\n".join(
        [
            *([_stopped_table(outcomes)] if len(whole) < len(names) else []),
            *([comparison_table(summaries)] if whole else []),
            *unlike_runs({str(run): run.record().card for run, _ in outcomes}),
        ]
    )
    target = options.dir / ("-vs-".join(names) + ".json")
    with replace_atomically(target) as aside:
        arms = [asdict(summary) for summary in summaries]
        stopped = {str(run): asdict(outcome) for run, outcome in outcomes if isinstance(outcome, StoppedRun)}
        aside.write_text(
            json.dumps({"arms": arms, "runs": [str(run.folder) for run, _ in outcomes], "stopped": stopped}, indent=1)
        )
    with replace_atomically(target.with_suffix(".txt")) as aside:
        aside.write_text(table + "\n")
    print(f"\nHead-to-head ({target.with_suffix('.txt')})\n{table}\n", flush=True)
    for path in sorted({scoreboard["init_args"]["path"] for run in runs for scoreboard in _scoreboards(run.config)}):
        print(f"Scoreboard ({path})\n{scoreboard_table(read_scoreboard(Path(path)))}\n", flush=True)
    return summaries


def _stopped_table(outcomes: list[tuple[PlannedRun, Outcome]]) -> str:
    """The runs that numbers ended which were not finite; their arms are left out of the head-to-head."""
    stopped = [(run, outcome) for run, outcome in outcomes if isinstance(outcome, StoppedRun)]
    rows = [[run.arm, str(run.seed), f"{outcome.step:,}", outcome.reason] for run, outcome in stopped]
    return text_table(["stopped arm", "seed", "after steps", "because"], rows)


def _train_all(runs: list[PlannedRun]) -> list[tuple[PlannedRun, Outcome]]:
    results = []
    spent, trained = 0.0, 0
    waiting = sum(run.outcome() is None for run in runs)
    for number, run in enumerate(runs, start=1):
        result = run.outcome()
        if result is not None:
            how = "finished" if isinstance(result, RunResult) else f"stopped at step {result.step}"
            print(f"[{number}/{len(runs)}] {run}: already {how} in {run.folder}", flush=True)
        else:
            left = f", about {duration(spent / trained * (waiting - trained))} left" if trained else ""
            print(f"\n[{number}/{len(runs)}] {run}{left}", flush=True)
            started = time.perf_counter()
            result = run.train()
            spent, trained = spent + time.perf_counter() - started, trained + 1
        results.append((run, result))
    return results
