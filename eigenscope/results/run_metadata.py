"""Run metadata file, ``run.json`` in the log folder: settings, status and results of a run."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from filelock import FileLock

from eigenscope.files import replace_atomically
from eigenscope.results.run_result import RunResult, StoppedRun

FILE_NAME = "run.json"
Outcome = Literal["running", "finished", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class RunMetadata:
    """Run metadata of one run, over all its resumes.

    Args:
        card: sections written when it was last started; empty if nobody wrote any.
        outcome: ``stopped`` by a number that was not finite, ``interrupted`` from outside, ``failed`` with any other
            error. A run that was killed still says ``running``.
        reason: one line, of what did not finish.
        resumed: for each resume, the start before it: its ``time``, the ``step`` at which it began, the ``commit`` of
            its code, its ``command``, and what it was ``allowed`` to have otherwise than its checkpoint, if anything.
        seconds: of fitting, validation included.
        samples_per_second: that were trained on, over all ranks and the time of training alone; None if unknown.
        peak_memory: the most bytes held at once, by device.
        result: of the last fit that came to its end.
        stopped: by which number that was not finite.
        evaluations: of its checkpoints by ``validate``, ``test`` and ``predict``, in order: the ``subcommand``, the
            ``checkpoint`` with its ``epoch`` and ``step``, the ``data``, the ``figures``, ``seconds``, ``time``,
            ``versions`` and ``command``; of ``predict`` the file of ``predictions``.

    Raises:
        ValueError: the outcome is unknown.
    """

    card: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome = "running"
    reason: str = ""
    resumed: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    samples_per_second: float | None = None
    peak_memory: dict[str, int] = field(default_factory=dict)
    result: RunResult | None = None
    stopped: StoppedRun | None = None
    evaluations: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Checks the outcome."""
        if self.outcome not in get_args(Outcome):
            raise ValueError(f"outcome must be one of {', '.join(get_args(Outcome))}, got {self.outcome!r}")

    def save(self, log_dir: Path) -> None:
        """Writes ``run.json``, whole or not at all."""
        log_dir.mkdir(parents=True, exist_ok=True)
        with replace_atomically(log_dir / FILE_NAME) as aside:
            aside.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, log_dir: Path) -> Self:
        """Reads ``run.json``; keys that a later version may have added are passed over.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not a record of a run.
        """
        path = log_dir / FILE_NAME
        content = path.read_text()
        try:
            known = _known(cls, json.loads(content))
            if known.get("result") is not None:
                known["result"] = RunResult.from_json(known["result"])
            if known.get("stopped") is not None:
                known["stopped"] = StoppedRun(**_known(StoppedRun, known["stopped"]))
            return cls(**known | {name: tuple(known.get(name, ())) for name in ("resumed", "evaluations")})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not run metadata: {error}; move it away to begin a new one") from error


def update_record(log_dir: Path, **changes: Any) -> RunMetadata:
    """Replaces fields of the folder's record, or of a new one, and saves it.

    A ``result`` makes the outcome ``finished`` and ``stopped`` makes it ``stopped``, unless the changes name another.

    Raises:
        ValueError: what is there is not a record of a run, or the outcome is unknown.
        TypeError: a record has no such field.
    """
    stopped: StoppedRun | None = changes.get("stopped")
    if stopped is not None:
        changes = {"outcome": "stopped", "reason": stopped.reason} | changes
    elif changes.get("result") is not None:
        changes = {"outcome": "finished", "reason": ""} | changes
    record = RunMetadata.load(log_dir) if (log_dir / FILE_NAME).exists() else RunMetadata()
    record = replace(record, **changes)
    record.save(log_dir)
    return record


def add_evaluation(log_dir: Path, evaluation: dict[str, Any]) -> None:
    """Adds an evaluation to the folder's record; evaluations that end together wait for each other.

    Raises:
        OSError: the record is not there, or cannot be written.
        ValueError: what is there is not a record of a run.
    """
    with FileLock(log_dir / f".{FILE_NAME}.lock"):
        record = RunMetadata.load(log_dir)
        replace(record, evaluations=(*record.evaluations, evaluation)).save(log_dir)


def _known(kind: type[Any], content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it has {type(content).__name__} where names with values must be")
    return {entry.name: content[entry.name] for entry in fields(kind) if entry.name in content}
