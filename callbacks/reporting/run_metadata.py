"""Run metadata (``run.json``): requested and effective settings, environment, outcome."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

import eigenscope
from eigenscope.callbacks._output import run_folder, tensorboard_loggers
from eigenscope.callbacks.reporting.effective_settings import Setting, effective_settings
from eigenscope.callbacks.resuming.resume_checkpoint import TrainingInterrupted
from eigenscope.optim import Routed
from eigenscope.protocols import Fingerprinted
from eigenscope.results.environment import code_state, hardware, peak_memory, versions
from eigenscope.results.metadata_text import card_text, code_block, outcome_text
from eigenscope.results.parameter_counts import count, count_parts
from eigenscope.results.run_clock import RunClock
from eigenscope.results.run_metadata import FILE_NAME, Outcome, RunMetadata, update_record
from eigenscope.text import markdown_table

_FROM_OUTSIDE = (KeyboardInterrupt, SystemExit, SIGTERMException, TrainingInterrupted)
_LONGEST_REASON = 300


class RunMetadataCallback(Callback):
    """Writes the run metadata to ``run.json`` in the run's folder, and as Markdown to TensorBoard's TEXT page.

    When training starts, rank zero notes the resolved configuration, requested beside effective settings, which
    optimizer each parameter goes to, how many parameters there are, a fingerprint of the data, versions, the commit
    of the code, hardware and the command (``run/metadata``, ``run/configuration``). When it ends, with or without an
    error: the outcome, its reason, the duration, samples per second and peak memory (``run/outcome``); when the same
    trainer has read the test set afterwards, ``run/test``. A resumed run continues the record:
    durations add up, the notes are those of the newest start, and a line is kept of each start before.

    Nothing is written without a folder, of which :class:`~eigenscope.callbacks.RunFolder` decides, in a
    ``fast_dev_run``, or by a run that ends before its first step.
    Random numbers are left alone.

    Attributes:
        configuration: of ``fit`` as it was asked for, plain values. The command line sets it; from Python, where it is
            None, the hyperparameters that module and data module have saved take its place.
        allowed: what this start was allowed to have otherwise than its checkpoint: dotted key to old and new value. The
            command line sets it; the record leaves it out if it is empty.
    """

    affects_training = False

    def __init__(self) -> None:
        self.configuration: dict[str, Any] | None = None
        self.allowed: dict[str, Any] = {}
        self._folder: Path | None = None
        self._starts: list[dict[str, Any]] = []
        self._clock = RunClock()
        self._samples = 0
        self._memory: dict[str, int] = {}
        self._seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resets the state of a previous fit; a resumed one is restored from its checkpoint."""
        if stage == "fit":
            self._folder, self._starts, self._clock, self._samples, self._memory = None, [], RunClock(), 0, {}
            self._seed = torch.initial_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the run metadata."""
        self._folder = run_folder(trainer)
        if self._folder is not None:
            record = RunMetadata()
            if trainer.global_step and (self._folder / FILE_NAME).exists():
                record = RunMetadata.load(self._folder)
                self._starts = [*record.resumed, *([record.card["start"]] if record.card else [])]
            card = self._card(trainer, pl_module)
            RunMetadata(
                card,
                resumed=tuple(self._starts),
                seconds=self._clock.seconds,
                result=record.result,
                evaluations=record.evaluations,
            ).save(self._folder)
            self._starts = [*self._starts, card["start"]]
            configuration = yaml.safe_dump(card["configuration"], sort_keys=False, allow_unicode=True)
            _show(trainer, "run/metadata", card_text(card))
            _show(trainer, "run/configuration", code_block(configuration))
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts samples."""
        self._samples += _samples(batch) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of training."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts it again."""
        self._clock.proceed()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clocks, and gathers the memory of all ranks."""
        self._clock.stop()
        self._memory = peak_memory(trainer.strategy.root_device)
        if trainer.world_size > 1:
            ranks: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, self._memory)
            self._memory = {f"rank {r}, {name}": size for r, each in enumerate(ranks) for name, size in each.items()}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes how a fit ended, after all others have written what they have."""
        if stage == "fit" and self._folder is not None:
            self._end(trainer, self._folder, "finished")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the metrics of a test after a fit."""
        if self._folder is not None:
            metrics = trainer.callback_metrics
            rows = [[name, f"{float(value):.6g}"] for name, value in metrics.items() if name.startswith("test/")]
            _show(trainer, "run/test", markdown_table(["metric", "value"], rows))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes why a fit, or the test after it, did not come to its end."""
        if self._folder is None or trainer.state.fn not in ("fit", "test"):
            return
        self._clock.stop()
        self._memory = self._memory or peak_memory(trainer.strategy.root_device)
        reason = " ".join([type(exception).__name__, *str(exception).split()])
        try:
            outcome: Outcome = "interrupted" if isinstance(exception, _FROM_OUTSIDE) else "failed"
            self._end(trainer, self._folder, outcome, reason[:_LONGEST_REASON])
        except OSError as error:  # as on a full disk, which may be what ended the run: the first error is the news
            exception.add_note(f"The run metadata could not be written: {error}")

    def state_dict(self) -> dict[str, Any]:
        """Seconds and samples so far, and the starts, as plain values."""
        return {
            "seconds": self._clock.seconds,
            "training_seconds": self._clock.training_seconds,
            "samples": self._samples,
            "starts": list(self._starts),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        self._clock.go_on_from(state_dict["seconds"], state_dict["training_seconds"])
        self._samples, self._starts = state_dict["samples"], list(state_dict["starts"])

    def _card(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data: Any = getattr(trainer, "datamodule", None)
        code = code_state([Path.cwd(), Path(eigenscope.__file__).parent])
        parts = {name: asdict(counts) for name, counts in count_parts(pl_module).items()}
        routing: dict[str, dict[str, str]] = {}
        for optimizer in trainer.optimizers:
            for route in optimizer.routes if isinstance(optimizer, Routed) else ():
                routing.setdefault(route.optimizer, {})[route.name] = route.reason
        return {
            "start": {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "step": trainer.global_step,
                "commit": code["commit"],
                "command": shlex.join(sys.orig_argv),
                **({"allowed": self.allowed} if self.allowed else {}),
            },
            "settings": [asdict(row) for row in self._settings(trainer, pl_module)],
            "parameters": {"total": asdict(count(pl_module)), "parts": parts},
            "routing": routing,
            "data": {"module": type(data).__name__, **data_fingerprint(trainer)},
            "code": code,
            "versions": versions(),
            "hardware": hardware(),
            "configuration": hyperparameters(pl_module, data) if self.configuration is None else self.configuration,
        }

    def _settings(self, trainer: Trainer, pl_module: LightningModule) -> list[Setting]:
        return effective_settings(trainer, pl_module, self.configuration or {}, self._seed)

    def _end(self, trainer: Trainer, folder: Path, outcome: Outcome, reason: str = "") -> None:
        changes: dict[str, Any] = {"outcome": outcome, "reason": reason}
        if outcome == "failed" and RunMetadata.load(folder).stopped is not None:
            changes = {}  # it says already why
        record = update_record(
            folder,
            **changes,
            seconds=self._clock.seconds,
            samples_per_second=self._samples / self._clock.training_seconds if self._samples else None,
            peak_memory=self._memory,
        )
        _show(trainer, "run/outcome", outcome_text(record))


def data_fingerprint(trainer: Trainer) -> dict[str, str]:
    """The fingerprints (checksums) of a run's data sets; empty if its data module has none."""
    data: Any = getattr(trainer, "datamodule", None)
    return data.fingerprint() if isinstance(data, Fingerprinted) else {}


def _show(trainer: Trainer, tag: str, text: str) -> None:
    for board in tensorboard_loggers(trainer):
        board.experiment.add_text(tag, text, trainer.global_step)


def _samples(batch: Any) -> int:
    """Samples of a batch, whatever holds its tensors; 0 where there is no tensor."""
    while isinstance(batch, (Mapping, tuple, list)) and batch:
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch) if isinstance(batch, Tensor) and batch.ndim else 0


def hyperparameters(pl_module: LightningModule, data: Any) -> dict[str, Any]:
    """The hyperparameters that a module and a data module have saved, as plain values."""
    return {
        name: {"class": type(part).__name__, **_plain(dict(getattr(part, "hparams", {})))}
        for name, part in (("model", pl_module), ("data", data))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
