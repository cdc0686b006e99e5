"""CSV file of metrics of a resumed run, without duplicate or missing rows."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from eigenscope.adapters.lightning_names import known_columns

Row = Mapping[str, str]


class ContinuedCSV(Callback):
    """Keeps the rows of ``metrics.csv`` up to the checkpoint, which ``CSVLogger`` would delete when a run is resumed.

    What the resumed run logs again before its first batch replaces its row of before.

    Args:
        tables: the rows to be kept, of each of the trainer's CSV loggers in order.
    """

    def __init__(self, tables: Sequence[Sequence[Row]]) -> None:
        self.tables = [list(rows) for rows in tables]
        self._pending = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the rows back, as soon as the logger has deleted them."""
        if stage == "fit":
            self._write(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes again before the first batch, without what has been logged once more."""
        self._settle(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same if there was no batch to train."""
        self._settle(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same if it did not come to a batch, or to its setup."""
        self._settle(trainer)

    def _settle(self, trainer: Trainer) -> None:
        if not self._pending:
            return
        self._pending = False
        for logger, rows in self._kept(trainer):
            again = {_place(row) for row in logger.experiment.metrics}
            rows[:] = [row for row in rows if _place(row) not in again]
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        for logger, rows in self._kept(trainer):
            writer: Any = logger.experiment
            columns = sorted({name for row in rows for name in row})
            known = known_columns(writer)
            path = Path(writer.metrics_file_path)
            if known is None:
                path = path.with_name("metrics_before_resume.csv")
            else:
                known[:] = sorted({*known, *columns})
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, columns)
                table.writeheader()
                table.writerows(rows)

    def _kept(self, trainer: Trainer) -> list[tuple[CSVLogger, list[Row]]]:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        pairs = zip(loggers, self.tables, strict=False) if trainer.is_global_zero else ()
        return [(logger, rows) for logger, rows in pairs if rows]


def _place(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The step and the names of the metrics that have a value."""
    named = sorted(name for name, value in row.items() if name != "step" and value not in (None, ""))
    return str(row.get("step")), tuple(named)
