"""One run of ``compare``: where it is kept, and its training in a process of its own."""

import copy
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from eigenscope.cli.process.child_process import run_child
from eigenscope.cli.resume.compatibility import find_checkpoint
from eigenscope.results.run_metadata import FILE_NAME, RunMetadata
from eigenscope.results.run_result import RunResult, StoppedRun

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
    def plan(cls, arm: str, seed: int, config: Config, root: Path, label: Sequence[str] = ()) -> "PlannedRun":
        """Places a run: the folder's name holds a digest of the configuration, wherever that wanted to log to.

        Args:
            arm: its name.
            seed: of the run.
            config: resolved, of the arm.
            root: where runs are kept.
            label: what the arms have otherwise than their files.
        """
        config = copy.deepcopy(config) | {"seed_everything": seed}
        config.pop("label", None)  # which changes nothing that is computed
        logger = config["trainer"].pop("logger")
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
        version = f"seed{seed}-{digest}"
        place = {"save_dir": str(root), "name": arm, "version": version}
        config["trainer"]["logger"] = logger | {"init_args": logger["init_args"] | place}
        for scoreboard in scoreboards(config):
            scoreboard["init_args"]["show"] = False  # once at the end instead of after every run
        return cls(arm, seed, config | {"label": list(label)}, root / arm / version)

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


def scoreboards(config: Config) -> list[Config]:
    """The ``Scoreboard`` callbacks of a configuration."""
    callbacks = config["trainer"]["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return [callback for callback in callbacks if callback["class_path"] == "eigenscope.callbacks.Scoreboard"]
