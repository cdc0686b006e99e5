"""Battery container callback: saves trained batteries and logs which battery is best at which type of noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from eigenscope.callbacks._output import print_beside_bar, run_folder, tensorboard_loggers
from eigenscope.figures import battery_matrix
from eigenscope.nn import BatteryEntry, save_batteries
from eigenscope.protocols import HasBatteries
from eigenscope.text import text_table


class BatteryContainer(Callback):
    """Saves all batteries to one file after each fit, prints a table of the best, and draws all errors in TensorBoard.

    The container (see :func:`eigenscope.nn.save_batteries`) says of each battery its mixture, the steps it was trained
    for and, as scores by noise type, its errors in the last validation; the table
    (:func:`~eigenscope.callbacks.spectra.battery_container`) which battery is best at a type; the figure ``batteries``
    (:func:`~eigenscope.figures.battery_matrix`) all errors at all types. A fit without validation leaves a container
    without scores, one without logs and path no container, and a ``fast_dev_run`` nothing.

    Args:
        path: of the container; None is ``batteries.safetensors`` in the run's folder.

    Raises:
        ValueError: in setup, the module is not :class:`~eigenscope.protocols.HasBatteries`.
    """

    affects_training = False

    def __init__(self, path: str | None = None) -> None:
        self.path = None if path is None else Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the module."""
        if not isinstance(pl_module, HasBatteries):
            raise ValueError(f"BatteryContainer needs a module that trains batteries, not {type(pl_module).__name__}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, prints and draws, on rank zero."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        path, folder = self.path, run_folder(trainer)
        if path is None and folder is not None:
            path = folder / "batteries.safetensors"
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
        for board in tensorboard_loggers(trainer):
            figure = battery_matrix(scores, module.label_names, module.mixtures)
            board.experiment.add_figure("batteries", figure, global_step=trainer.global_step)


def _entries(module: HasBatteries) -> list[BatteryEntry]:
    """What the container says of each battery; of its scores those that are numbers."""
    names, scores = module.label_names, module.cross_scores
    rows = [[]] * len(module.mixtures) if scores is None else scores.tolist()
    finite = [{n: s for n, s in zip(names, row, strict=False) if abs(s) < float("inf")} for row in rows]
    steps = module.steps.tolist()
    return [BatteryEntry(tuple(m), s, f) for m, s, f in zip(module.mixtures, steps, finite, strict=True)]


def battery_table(errors: Tensor, names: Sequence[str], mixtures: Sequence[Sequence[str]]) -> str:
    """Text: for every noise type the battery of smallest error, what it was trained on, and the median battery's error.

    Args:
        errors: (K, T), see :func:`eigenscope.nn.cross_evaluate`; what is not finite is never the best.
        names: of the T types.
        mixtures: of the K batteries.

    Raises:
        ValueError: the names or mixtures are not as many as columns and rows, or there is no battery.
    """
    if errors.ndim != 2 or not len(errors) or errors.shape != (len(mixtures), len(names)):
        raise ValueError(
            f"errors must be (K, T) with K >= 1 mixtures and T names, "
            f"got {tuple(errors.shape)}, {len(mixtures)} mixtures and {len(names)} names"
        )
    errors = errors.detach().cpu().double()
    rows = []
    for name, column in zip(names, errors.T, strict=True):
        finite = column.isfinite()
        if not finite.any():
            rows.append([name, "none", "", "", ""])
            continue
        best = int(column.where(finite, float("inf")).argmin())
        mixture = " + ".join(mixtures[best]) or "untrained"
        rows.append([name, str(best), mixture, f"{column[best]:.4g}", f"{column[finite].median():.4g}"])
    return text_table(["noise", "battery", "trained on", "MSE", "median MSE"], rows)
