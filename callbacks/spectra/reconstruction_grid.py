"""Reconstruction grid: images beside their reconstructions, and spectra of latents, as figures in TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.callbacks._output import tensorboard_loggers
from eigenscope.callbacks.spectra.cv_loss_schedule import CVLossSchedule
from eigenscope.figures import cv_histogram, reconstruction_figure, spectrum_figure
from eigenscope.geometry import expected_cv, has_cv, random_unit_points, spread_matrices, volume_cv
from eigenscope.linalg import gram_svd
from eigenscope.protocols import Autoencoding, PointSets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = 16  # of which an image is drawn
_MATRICES = 512  # measured of each point set, spread over images and patches
_SIMPLICES = 200  # of each of them


class ReconstructionGrid(Callback):
    """Draws a grid of images and reconstructions after validation, and spectra of latents beside their baselines.

    Written to every TensorBoard logger at the global step: ``reconstructions``, see
    :func:`~eigenscope.figures.reconstruction_figure`; and for each point set of at least five points in four
    dimensions, such as M, ``spectrum_M`` and ``cv_histogram_M``, of up to 512 matrices of the same images. The images
    are the first of each of the first 16 labels that the validation loaders yield, under DDP to rank zero: the same in
    every epoch if the loaders repeat themselves. The data module's ``label_names`` name them, if it has any.

    The untrained baseline is measured in the sanity check of a fit that starts at step 0, on the images that this
    sees (under a curriculum those of its first tier), and goes with the checkpoints. A fit without sanity check has
    none, and its figures show the others.

    Args:
        every_n_epochs: draws after the validation of every so many epochs; outside a fit, always.

    Raises:
        ValueError: ``every_n_epochs`` is below 1; or, in setup, the module is not
            :class:`~eigenscope.protocols.Autoencoding`.
    """

    affects_training = False

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._images: dict[int, Tensor] = {}  # of this validation, by label
        self._untrained: dict[str, dict[str, Tensor]] = {}  # singular values (N, D) and CVs (N,), by point set
        self._said = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the module, and warns if there is no TensorBoard logger."""
        if not isinstance(pl_module, Autoencoding):
            raise ValueError(
                f"ReconstructionGrid needs a module with autoencode(images), which {type(pl_module).__name__} has not"
            )
        if stage == "fit" and trainer.global_step == 0:
            self._untrained = {}  # of another module; that of a resumed run is loaded after this
        if not tensorboard_loggers(trainer) and not self._said:
            rank_zero_info("ReconstructionGrid draws nothing: the trainer has no TensorBoardLogger")
            self._said = True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discards the images of a validation that was interrupted."""
        self._images = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the first image of each label."""
        if not self._is_due(trainer):
            return
        images, labels = batch
        for place, label in enumerate(labels.tolist()):
            if len(self._images) == _LABELS:
                return
            if label not in self._images:
                self._images[label] = images[place].clone()  # a view would hold the whole batch

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the figures; in the sanity check measures the untrained baseline."""
        kept, self._images = dict(sorted(self._images.items())), {}
        if not kept:
            return
        images = torch.stack(list(kept.values()))
        with trainer.precision_plugin.forward_context():
            reconstructions, point_sets = cast(Autoencoding, pl_module).autoencode(images)
        chosen = _chosen(point_sets)
        if trainer.sanity_checking:
            self._untrained = {name: _measure(points) for name, points in chosen.items()}
            return
        known = getattr(getattr(trainer, "datamodule", None), "label_names", ())
        names = [known[label] if 0 <= label < len(known) else f"class {label}" for label in kept]
        figures = {"reconstructions": reconstruction_figure(images, reconstructions, names)}
        for name, points in chosen.items():
            figures |= self._sector_figures(trainer, name, points)
        for board in tensorboard_loggers(trainer):
            for tag, figure in figures.items():
                board.experiment.add_figure(tag, figure, global_step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The untrained baseline."""
        return {"untrained": self._untrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores that of the resumed run."""
        self._untrained = state_dict["untrained"]

    def _is_due(self, trainer: Trainer) -> bool:
        if not trainer.is_global_zero or not tensorboard_loggers(trainer):
            return False
        if trainer.sanity_checking:
            return trainer.global_step == 0
        fits = trainer.state.fn == TrainerFn.FITTING
        return not fits or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _sector_figures(self, trainer: Trainer, name: str, points: Tensor) -> dict[str, Figure]:
        """The figures of a point set's matrices (N, V, D), by tag."""
        num_points, dim = points.shape[1:]
        measured, untrained = _measure(points), self._untrained.get(name)
        point_set = f"point_set {name}: {num_points} points in {dim} dimensions"
        spectrum = spectrum_figure(
            measured["singular_values"],
            random=_singular_values(random_unit_points(_MATRICES, num_points, dim)),
            untrained=None if untrained is None else untrained["singular_values"],
            title=f"Singular values, {point_set}",
        )
        histogram = cv_histogram(
            measured["cvs"],
            target=_target(trainer, name),
            random=expected_cv(dim),
            untrained=None if untrained is None else _finite_mean(untrained["cvs"]),
            title=f"CV of 4-simplices, {point_set}",
        )
        return {f"spectrum_{name}": spectrum, f"cv_histogram_{name}": histogram}


def _target(trainer: Trainer, name: str) -> float | None:
    """The CV that training aims at, if it aims at one."""
    aims = [callback.targets for callback in callbacks_of(trainer) if isinstance(callback, CVLossSchedule)]
    return next((targets[name] for targets in aims if name in targets), None)


def _chosen(point_sets: PointSets) -> dict[str, Tensor]:
    """Of every point set with a CV at most 512 matrices, evenly spaced, (N, V, D)."""
    return {
        name: spread_matrices(points, _MATRICES) for name, points in point_sets.items() if has_cv(*points.shape[-2:])
    }


def _measure(points: Tensor) -> dict[str, Tensor]:
    """Singular values (N, D) and CVs (N,) of matrices (N, V, D), on the CPU."""
    cvs = volume_cv(points, _SIMPLICES, torch.Generator().manual_seed(0)).cv
    return {"singular_values": _singular_values(points), "cvs": cvs.cpu()}


def _singular_values(points: Tensor) -> Tensor:
    """(N, D) on the CPU, NaN for a matrix that is not finite, which an eigensolver would refuse."""
    S = gram_svd(points.nan_to_num(0, 0, 0), vectors="none", compute_dtype=torch.float64).S
    return torch.where(points.isfinite().all(-1).all(-1)[:, None], S, torch.nan).cpu()


def _finite_mean(values: Tensor) -> float | None:
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else None
