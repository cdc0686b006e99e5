"""TensorBoard dashboard of a run: custom scalars and a row of hyperparameters."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from eigenscope.adapters.lightning_names import callbacks_of, tag_prefix
from eigenscope.adapters.tensorboard_names import HParamsRow
from eigenscope.callbacks._output import tensorboard_loggers
from eigenscope.callbacks.reporting.epoch_recorder import EpochRecorder
from eigenscope.callbacks.reporting.hparams_page import LABEL, SEPARATOR, add_to_page
from eigenscope.callbacks.reporting.run_identity import run_label, run_settings
from eigenscope.charts import Chart, Layout, dashboard, joined, present
from eigenscope.optim.eigenbases.tracked_parameters import optimizer_parts
from eigenscope.protocols import HasCharts
from eigenscope.results import scored
from eigenscope.results.hyperparameters import flat_hyperparameters
from eigenscope.results.settings import short_names

_FIRST = ("batch_size", "lr", "net", "optimizer", "seed")


class TensorBoardLayout(Callback):
    """Lays out TensorBoard's dashboard of custom scalars, and adds a row with metrics to its HPARAMS page.

    The dashboard holds the charts that the module and the callbacks state (:class:`~eigenscope.protocols.HasCharts`)
    of what this run has logged, and the learning rates of a ``LearningRateMonitor``. It is written after the first
    epoch, and again after epochs, and at the end, in which charts or tags have come in: TensorBoard shows the latest.

    The row is written when a fit comes to its end. Its columns are scalars with short names: what the run has otherwise
    than its configuration file, classes of module, network, data and optimizer, rates, batch size over all ranks,
    precision, clipping, accumulation, ranks, seed, number of parameters, the module's arguments and its network's (see
    :func:`~eigenscope.results.hyperparameters.flat_hyperparameters`), and all other settings that its result depends
    on; what is null has an empty cell. Columns in which the runs of the experiment differ are shown first, see
    :mod:`eigenscope.callbacks.reporting.hparams_page`. Its metrics are, if a callback such as ``Scoreboard`` judges
    epochs by a score, ``run/best_score`` and ``run/last_score``, which are logged then, as is ``run/epochs``; and the
    latest metrics ``val/*``, or ``train/*`` where nothing was validated. A run that is resumed in its folder renews its
    row.

    Training is not touched: what was logged is read, on all ranks, since reading a mean over ranks adds it up; rank
    zero writes. Without a TensorBoard logger nothing happens.
    """

    affects_training = False

    def __init__(self) -> None:
        self._layout: Layout = {}
        self._charts: list[Chart] = []
        self._rates: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resets the state of a previous fit; the charts of a resumed one are restored from its checkpoint."""
        if stage == "fit":
            self._layout, self._charts = {}, []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the rates that the optimizer was made with, before a schedule or a checkpoint changes them."""
        self._rates = _rates([group for optimizer in trainer.optimizers for group in optimizer.param_groups])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the dashboard if it has changed."""
        self._lay_out(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the dashboard if it has changed, and the row."""
        self._lay_out(trainer, pl_module)
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        if trainer.is_global_zero:
            for board in tensorboard_loggers(trainer):
                self._add_row(trainer, pl_module, board, logged)

    def state_dict(self) -> dict[str, Any]:
        """The charts so far, as plain values."""
        return {"charts": [asdict(chart) for chart in self._charts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them over: some are of what is measured rarely, or once."""
        self._charts = [Chart(**chart) for chart in state_dict["charts"]]

    def _lay_out(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged, noted = set(trainer.logged_metrics), set(trainer.callback_metrics)  # on all ranks
        if not trainer.is_global_zero or not tensorboard_loggers(trainer):
            return
        charts = _charts([pl_module, *callbacks_of(trainer)], logged, noted)
        self._charts = joined([*charts, *self._charts])
        layout = dashboard(self._charts)
        if layout and layout != self._layout:
            self._layout = layout
            for board in tensorboard_loggers(trainer):
                board.experiment.add_custom_scalars(dashboard(self._charts, tag_prefix(board)))

    def _add_row(
        self, trainer: Trainer, pl_module: LightningModule, board: TensorBoardLogger, logged: Mapping[str, float]
    ) -> None:
        row = _live(trainer, pl_module) | self._rates
        figures = {"run/epochs": float(trainer.current_epoch)}
        recorder = next((c for c in callbacks_of(trainer) if isinstance(c, EpochRecorder)), None)
        known = scored(recorder.epochs, recorder.monitor) if recorder is not None else []
        if recorder is not None and known:
            score = recorder.monitor
            row["score"] = f"{score.mode} {score.name}"
            figures = {"run/best_score": score.best(known)[0], "run/last_score": known[-1][0], **figures}
        board.log_metrics(figures, step=trainer.global_step)
        stage = "val/" if any(name.startswith("val/") for name in logged) else "train/"
        named = [tag_prefix(board) + name for name in (*figures, *(name for name in logged if name.startswith(stage)))]
        board.experiment.flush()
        columns = _cells(run_settings(trainer, pl_module)) | row
        columns |= {LABEL: SEPARATOR.join(label)} if (label := run_label(trainer)) else {}
        add_to_page(Path(board.log_dir), Path(board.save_dir), HParamsRow(columns, named), _FIRST)


def _charts(parts: Iterable[Any], logged: Collection[str], noted: Collection[str]) -> list[Chart]:
    """What the parts of a run state, in their order; learning rates are not logged but noted."""
    charts: list[Chart] = []
    for part in parts:
        if isinstance(part, HasCharts):
            charts += part.charts(logged)
        elif isinstance(part, LearningRateMonitor) and part.lrs:
            charts += present([Chart("Training and validation", "learning rate", tuple(part.lrs))], noted)
    return charts


def _live(trainer: Trainer, pl_module: LightningModule) -> dict[str, str | float]:
    """What the run consists of."""
    data: Any = getattr(trainer, "datamodule", None)
    net = getattr(pl_module, "net", None)
    found: dict[str, Any] = {
        **flat_hyperparameters(pl_module.hparams),
        "module": type(pl_module).__name__,
        "net": None if net is None else type(net).__name__,
        "data": None if data is None else type(data).__name__,
        "optimizer": " + ".join(type(part).__name__ for part in optimizer_parts(trainer.optimizers)),
        "batch_size": getattr(data, "batch_size", None),
        "precision": str(trainer.precision),
        "clip": trainer.gradient_clip_val,
        "accumulate": trainer.accumulate_grad_batches,
        "ranks": trainer.world_size,
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) is not None else None,
        "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
    }
    return _present(flat_hyperparameters(found))


def _cells(settings: Mapping[str, Any]) -> dict[str, str | float]:
    """All settings by their short names."""
    names = short_names(settings, settings)
    return _present(flat_hyperparameters({names[path]: value for path, value in settings.items()}))


def _present(row: Mapping[str, str | float]) -> dict[str, str | float]:
    """Without what is null: numbers beside a word would not be numbers."""
    return {name: value for name, value in row.items() if value != "none"}


def _rates(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Learning rate and weight decay of the first group, and numbered those of others that differ."""
    found: dict[str, float] = {}
    for name, keys in {"lr": ("max_lr", "initial_lr", "lr"), "weight_decay": ("weight_decay",)}.items():
        values = dict.fromkeys(next((group[key] for key in keys if key in group), None) for group in groups)
        for number, value in enumerate((value for value in values if value is not None), 1):
            found[name if number == 1 else f"{name}_{number}"] = float(value)
    return found
