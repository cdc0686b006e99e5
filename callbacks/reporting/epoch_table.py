"""Console output of a run: a table row per epoch, and the parameter routing of a composite optimizer."""

from lightning.pytorch import Callback, LightningModule, Trainer

from eigenscope.callbacks._output import print_beside_bar, run_folder, tensorboard_loggers
from eigenscope.callbacks.reporting.epoch_recorder import EpochRecorder
from eigenscope.callbacks.reporting.run_identity import experiment_name, run_label
from eigenscope.optim import Routed, routing_table
from eigenscope.results import scored
from eigenscope.results.run_result import recent_seconds, run_title
from eigenscope.text import duration

_WIDTHS = (6, 11, 10, 8, 8, 10, 9, 8, 8)


class EpochTable(EpochRecorder):
    """Prints a table row of metrics per epoch, above the progress bar if there is one.

    Before it, what the run is called: the experiment and what differs from its configuration file, and the log folder.
    Columns: epoch, the score in training and validation, training loss, their gap (training minus validation), the
    best score so far and its epoch, the seconds that the epoch took with validation, and the time the run has left, as
    of the median of the last three epochs. A metric that was not logged is shown as ``-``.

    Args:
        monitor: the logged metric that epochs are judged by.
    """

    _before = 0  # epochs that a resumed run had
    _steps = 0  # at the start of the epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints what the run is called, and the header."""
        super().on_train_start(trainer, pl_module)
        self._before, self._steps = len(self.epochs), trainer.global_step
        title = run_title(experiment_name(trainer, pl_module), run_label(trainer))
        folder = run_folder(trainer)
        print_beside_bar(trainer, pl_module, f"Run: {title}" + (f", in {folder}" if folder is not None else ""))
        leaf, unit = self.monitor.name.removeprefix("val/"), self.monitor.unit
        titles = ("epoch", f"train {leaf}{unit}", f"val {leaf}{unit}", "loss", "gap", f"best{unit}", "at epoch")
        print_beside_bar(trainer, pl_module, _line((*titles, "seconds", "left")))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the step."""
        super().on_train_epoch_start(trainer, pl_module)
        self._steps = trainer.global_step

    def epoch_recorded(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch's line."""
        row = self.epochs[-1]
        train, val = row.metrics.get(self.monitor.train_name), row.metrics.get(self.monitor.name)
        loss = row.metrics.get("train/loss")
        known = scored(self.epochs, self.monitor)
        best = self.monitor.best(known) if known else None
        cells = [
            str(row.epoch),
            "-" if train is None else self.monitor.text(train),
            "-" if val is None else self.monitor.text(val),
            "-" if loss is None else f"{loss:#.4g}",
            "-" if train is None or val is None else self.monitor.text(train - val, sign="+"),
            "-" if best is None else self.monitor.text(best[0]),
            "-" if best is None else str(best[1]),
            f"{row.seconds:.1f}",
            self._left(trainer),
        ]
        print_beside_bar(trainer, pl_module, _line(cells))

    def _left(self, trainer: Trainer) -> str:
        epochs, steps = trainer.max_epochs, trainer.max_steps
        left: list[float] = [epochs - self.epochs[-1].epoch] if epochs is not None and epochs >= 0 else []
        if steps >= 0:
            left.append((steps - trainer.global_step) / max(1, trainer.global_step - self._steps))
        since = self.epochs[self._before :]  # those before a resume may have run elsewhere
        return duration(max(0, min(left)) * recent_seconds(since)) if left else "-"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


class ParameterRouting(Callback):
    """Prints which optimizer each parameter is assigned to, and logs the table as the text ``optimizer/routing``.

    An optimizer without ``routes``, such as AdamW alone, has no table: nothing is printed then.
    """

    affects_training = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and logs the table."""
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, Routed):
                table = routing_table(optimizer.routes)
                print_beside_bar(trainer, pl_module, table)
                for logger in tensorboard_loggers(trainer) if trainer.is_global_zero else []:
                    card = "\n".join(f"    {line}" for line in table.splitlines())  # Markdown's code block
                    logger.experiment.add_text("optimizer/routing", card, trainer.global_step)
