"""Scoreboard callback: one CSV row per finished run."""

import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from eigenscope.callbacks._output import print_beside_bar, run_folder
from eigenscope.callbacks.reporting.effective_settings import optimizer_names
from eigenscope.callbacks.reporting.epoch_recorder import EpochRecorder
from eigenscope.callbacks.reporting.run_identity import (
    experiment_name,
    run_data,
    run_label,
    run_settings,
    validated_part,
)
from eigenscope.results import (
    MonitoredMetric,
    RunResult,
    add_to_scoreboard,
    read_scoreboard,
    scoreboard_table,
    scored,
    update_record,
)
from eigenscope.results.machine_load import MachineLoad, is_busy
from eigenscope.results.run_result import run_title


class Scoreboard(EpochRecorder):
    """Adds each fit's result to ``run.json`` and a row to the scoreboard, a CSV file; prints the experiment's rows.

    A row names what its run has otherwise than its configuration file: ``+ cv/align_hand, clamp=null``. Rows whose
    scores do not compare (other data, another protocol, metric or part of the validation set) stand apart, and the
    run's own is marked. Seconds per epoch get a star if other processes kept the machine busy meanwhile.

    If the same trainer reads the test set afterwards, its metrics join the result and the row. A run without logs
    has a row alone; a ``fast_dev_run``, or a run in which the score was never logged, leaves nothing.

    Args:
        path: the scoreboard's CSV file.
        monitor: the logged metric that runs are judged by.
        name: of the experiment; None takes the logger's.
        show: print the experiment's rows after the fit.

    Raises:
        ValueError: when a fit begins, if the file is there and is not a scoreboard.
    """

    def __init__(
        self,
        path: str = "runs/scoreboard.csv",
        monitor: MonitoredMetric = MonitoredMetric(),  # noqa: B008  a frozen dataclass
        name: str | None = None,
        show: bool = True,
    ) -> None:
        super().__init__(monitor)
        self.path = Path(path)
        self.name = name
        self.show = show
        self._result: RunResult | None = None
        self._settings: dict[str, Any] = {}
        self._load = MachineLoad()
        self._others: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the scoreboard file is readable."""
        if stage == "fit":
            read_scoreboard(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock and measures the load of the machine from here."""
        super().on_train_start(trainer, pl_module)
        self._load.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the load of the machine up to here."""
        self._others = self._load.others()

    def epoch_recorded(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing to do before the end."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the result."""
        fast = bool(getattr(trainer, "fast_dev_run", False))
        if not trainer.is_global_zero or fast or not scored(self.epochs, self.monitor):
            return
        self._settings = run_settings(trainer, pl_module)
        protocols = (getattr(part, "protocol", "") for part in (getattr(trainer, "datamodule", None), pl_module))
        seed = os.environ.get("PL_GLOBAL_SEED")
        self._result = RunResult(
            name=self.name or experiment_name(trainer, pl_module),
            seed=None if seed is None else int(seed),
            parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            log_dir=str(run_folder(trainer) or ""),
            epochs=tuple(self.epochs),
            score=self.monitor,
            precision=str(trainer.precision),
            optimizer=optimizer_names(trainer.optimizers),
            protocol=", ".join(filter(None, protocols)),
            label=run_label(trainer),
            data=run_data(trainer),
            validated=validated_part(trainer),
            others=self._others,
            busy=is_busy(self._others),
        )
        row = self._write(self._result)
        if self.show:
            rows = [old for old in read_scoreboard(self.path) if old["name"] == row["name"]]
            own = [old for old in rows if old == row][-1:]
            title = run_title(self._result.name, self._result.label)
            folder = f", in {self._result.log_dir}" if self._result.log_dir else ""
            print_beside_bar(
                trainer,
                pl_module,
                f"\nScoreboard ({self.path})\n{scoreboard_table(rows, *own)}\n\nThis run: {title}{folder}\n",
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the metrics of the test set to the result of the fit before."""
        if self._result is not None:
            test = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("test/")}
            self._write(dataclasses.replace(self._result, test=test))

    def _write(self, result: RunResult) -> dict[str, str]:
        if result.log_dir:
            update_record(Path(result.log_dir), result=result)
        return add_to_scoreboard(self.path, result, self._settings)
