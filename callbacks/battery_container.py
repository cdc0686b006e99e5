"""The batteries of a finished training as a file, and which of them serves which noise."""

from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.boards import boards
from callbacks.printing import print_beside_bar
from eigenscope.figures import battery_matrix
from eigenscope.nn import BatteryEntry, save_batteries
from eigenscope.protocols import HasBatteries
from eigenscope.study import battery_table


class BatteryContainer(Callback):
    """After each fit writes all batteries into one file, prints a table, and draws all errors in TensorBoard.

    The container (see :func:`eigenscope.nn.save_batteries`) says of each battery its mixture, the steps it was trained
    for and, as scores by noise type, its errors in the last validation; the table
    (:func:`~eigenscope.study.battery_table`) which battery is best at a type; the figure ``batteries``
    (:func:`~eigenscope.figures.battery_matrix`) all errors at all types. A fit without validation leaves a container
    without scores, one without logs and path no container, and a ``fast_dev_run`` nothing.

    Args:
        path: of the container; None is ``batteries.safetensors`` in the run's log folder.

    Raises:
        ValueError: in setup, the module is not :class:`~eigenscope.protocols.HasBatteries`.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = None if path is None else Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the module."""
        if not isinstance(pl_module, HasBatteries):
            raise ValueError(f"BatteryContainer needs a module that trains batteries, not {type(pl_module).__name__}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, prints and draws, on rank zero."""
        log_dir = trainer.log_dir  # on every rank: Lightning broadcasts it
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        path = self.path
        if path is None and trainer.logger is not None and log_dir is not None:
            path = Path(log_dir) / "batteries.safetensors"
        module = cast(HasBatteries, pl_module)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_batteries(path, module.batteries, _entries(module))
        if module.cross_scores is not None:
            names = module.label_names
            short = [("all types",) if len(mixture) == len(names) > 4 else mixture for mixture in module.mixtures]
            table = battery_table(module.cross_scores, names, short)
            print_beside_bar(trainer, pl_module, f"\nBatteries ({path or 'not written'})\n{table}\n")
            self._draw(trainer, module, module.cross_scores)

    def _draw(self, trainer: Trainer, module: HasBatteries, scores: Tensor) -> None:
        for board in boards(trainer):
            figure = battery_matrix(scores, module.label_names, module.mixtures)
            board.experiment.add_figure("batteries", figure, global_step=trainer.global_step)


def _entries(module: HasBatteries) -> list[BatteryEntry]:
    """What the container says of each battery; of its scores those that are numbers."""
    names, scores = module.label_names, module.cross_scores
    rows = [[]] * len(module.mixtures) if scores is None else scores.tolist()
    finite = [{n: s for n, s in zip(names, row, strict=False) if abs(s) < float("inf")} for row in rows]
    steps = module.steps.tolist()
    return [BatteryEntry(tuple(m), s, f) for m, s, f in zip(module.mixtures, steps, finite, strict=True)]
