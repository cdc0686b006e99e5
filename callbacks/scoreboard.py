"""The board over all runs."""

import os
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from callbacks.epoch_recorder import EpochRecorder
from eigenscope.study import RunResult, add_to_scoreboard, read_scoreboard, scoreboard_table


class Scoreboard(EpochRecorder):
    """After each fit leaves ``result.json`` in the run's log folder, adds a row to the board and prints the board.

    Args:
        path: the board's CSV file.
        name: of the experiment; None takes the logger's.
        show: print the board after the fit.
    """

    def __init__(self, path: str = "runs/scoreboard.csv", name: str | None = None, show: bool = True) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = name
        self.show = show

    def epoch_recorded(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing to do before the end."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the result, unless no epoch was validated or this was a ``fast_dev_run``."""
        log_dir = trainer.log_dir  # on every rank: Lightning broadcasts it
        validated = any(row.val_acc is not None for row in self.epochs)
        if not trainer.is_global_zero or not validated or getattr(trainer, "fast_dev_run", False):
            return
        has_logs = trainer.logger is not None and log_dir is not None
        seed = os.environ.get("PL_GLOBAL_SEED")
        result = RunResult(
            name=self.name or str(trainer.logger.name if trainer.logger is not None else type(pl_module).__name__),
            seed=None if seed is None else int(seed),
            parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            log_dir=str(log_dir) if has_logs else "",
            epochs=tuple(self.epochs),
        )
        if has_logs:
            result.save(Path(str(log_dir)) / "result.json")
        add_to_scoreboard(self.path, result)
        if self.show:
            pl_module.print(f"\nScoreboard ({self.path})\n{scoreboard_table(read_scoreboard(self.path))}\n")
