"""Schedule of the loss term on the CV (coefficient of variation) of Cayley–Menger simplex volumes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from eigenscope.charts import Chart, present
from eigenscope.geometry import CVPolicy, cv_loss, has_cv, proximity, volume_cv
from eigenscope.noise import stream_key
from eigenscope.protocols import HasPointSets, LossTransform, PointSets

_MEASURE_SIMPLICES = 200  # of each measured matrix
_LOSS_SIMPLICES = 64  # of each matrix that the loss sees
_EMA_DECAY = 0.9  # weight of the past in the moving average of the measured CV


@dataclass
class _PointSet:
    """What is known of a point set in a run."""

    policy: CVPolicy
    target: float
    number: int
    cv: float | None = None  # as last measured
    ema: float | None = None
    figures: dict[str, float] = field(default_factory=dict)  # measured in this step, to be logged


class CVLossSchedule(Callback):
    """Adds a loss term on the CV of simplex volumes of a module's point sets, by a schedule, and logs the CV.

    The CV is the coefficient of variation: standard deviation over mean.

    For each point set it adds weight·(CV − target)² to the training loss, with gradient, the weight following phases
    (see :class:`~eigenscope.geometry.CVPolicy`); the CV is that of random simplices of random matrices of the
    batch, drawn anew in every step from (seed, epoch, batch, rank). Every ``measure_every`` batches it logs, for M:
    ``cv_M/measured`` ± ``cv_M/standard_error`` (of more simplices, over all ranks) and the band of two of these,
    ``cv_M/lower`` to ``cv_M/upper``, their moving average ``cv_M/ema``, ``cv_M/target``, ``cv_M/weight``,
    ``cv_M/proximity``, and the norms of the gradients of the CV term and of the rest of the loss with respect to the
    point set's points, ``cv_M/gradient_norm`` and ``cv_M/reconstruction_gradient_norm``; and ``cv_M/degenerate``, the
    share of measured matrices that have no CV because all their points coincide, which the other metrics leave out.

    A point set that carries no gradient, such as that of a frozen encoder, is measured and gets no term.

    Args:
        point_sets: point set to its policy.
        measure_every: batches of an epoch between measurements, the first of which is at its start.
        measure_matrices: matrices measured, or all there are, by 200 simplices each.
        loss_matrices: matrices of a step that the loss sees, or all there are, by 64 simplices each.

    Raises:
        ValueError: a number is out of range; or, when training starts, the module has no point sets or not this one, a
            point set has fewer than five points or four dimensions.
    """

    affects_training = True

    def __init__(
        self,
        point_sets: dict[str, CVPolicy],
        measure_every: int = 50,
        measure_matrices: int = 16,
        loss_matrices: int = 64,
    ) -> None:
        for name, value, least in (
            ("measure_every", measure_every, 1),
            ("measure_matrices", measure_matrices, 1),
            ("loss_matrices", loss_matrices, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not point_sets:
            raise ValueError("point_sets must name at least one point set")
        self.policies = point_sets
        self.measure_every = measure_every
        self.measure_matrices = measure_matrices
        self.loss_matrices = loss_matrices
        self._seed: int | None = None
        self._point_sets: dict[str, _PointSet] = {}
        self._restored: dict[str, dict[str, float | None]] = {}
        self._logged: set[str] = set()
        self._place = (0, 0)  # epoch and batch
        self._loss_transform: LossTransform | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the point sets against the module before anything is trained."""
        if stage != "fit":
            return
        shapes = pl_module.point_set_shapes if isinstance(pl_module, HasPointSets) else {}
        for number, (name, policy) in enumerate(self.policies.items()):
            if name not in shapes:
                have = ", ".join(shapes) or "none"
                raise ValueError(f"point_sets: {type(pl_module).__name__} has no point set {name!r}; there are: {have}")
            points, dim = shapes[name]
            if not has_cv(points, dim):
                raise ValueError(
                    f"point_sets: the CV of {name!r} needs at least 5 points in 4 dimensions, it has {points} in {dim}"
                )
            self._point_sets[name] = _PointSet(policy, policy.target_in(dim), number)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Registers the CV loss term."""
        seed = int(trainer.strategy.broadcast(torch.initial_seed()))
        self._seed = seed if self._seed is None else self._seed
        for name, values in self._restored.items():
            if name in self._point_sets:
                self._point_sets[name].cv, self._point_sets[name].ema = values["cv"], values["ema"]
        self._restored = {}
        self._loss_transform = _Term(partial(self._apply, trainer))
        cast(HasPointSets, pl_module).loss_transforms.append(self._loss_transform)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the CV loss term."""
        self._leave(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the CV loss term."""
        self._leave(pl_module)

    def _leave(self, pl_module: LightningModule) -> None:
        if self._loss_transform is not None:
            cast(HasPointSets, pl_module).loss_transforms.remove(self._loss_transform)
            self._loss_transform = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stores the epoch and batch, on which the phase of the schedule depends."""
        self._place = (trainer.current_epoch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs what was measured in this step, and at the end of an epoch the moving averages as its metrics."""
        for name, point_set in self._point_sets.items():
            if point_set.figures:
                figures = {f"cv_{name}/{figure}": value for figure, value in point_set.figures.items()}
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step=trainer.global_step)
                self._logged |= figures.keys()
                point_set.figures = {}
            if trainer.is_last_batch and point_set.ema is not None:
                pl_module.log(f"cv_{name}/ema", point_set.ema, on_step=False, on_epoch=True, sync_dist=True)

    @property
    def targets(self) -> dict[str, float]:
        """The target CV of each point set, once training has been set up."""
        return {name: point_set.target for name, point_set in self._point_sets.items()}

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Charts of the CV of each point set, its target and the weight of its loss term."""
        wanted = []
        for name in self.policies:
            tag, section = f"cv_{name}", f"Point set {name}"
            wanted += [
                Chart(
                    section,
                    "CV in training ± 2 standard errors",
                    (f"{tag}/measured",),
                    band=(f"{tag}/lower", f"{tag}/upper"),
                ),
                Chart(section, "CV in training and its target", (f"{tag}/ema", f"{tag}/target")),
                Chart(
                    section,
                    "gradient norms of the CV term and of the rest",
                    (f"{tag}/gradient_norm", f"{tag}/reconstruction_gradient_norm"),
                ),
                Chart(section, "weight of the CV term", (f"{tag}/weight",)),
            ]
        return present(wanted, self._logged)

    @property
    def state_key(self) -> str:
        """Differs between instances for different point sets; two for one point set are refused by Lightning."""
        return f"CVLossSchedule{sorted(self.policies)}"

    def state_dict(self) -> dict[str, Any]:
        """The seed of the draws and the measured metrics."""
        return {"seed": self._seed, "point_sets": {n: {"cv": s.cv, "ema": s.ema} for n, s in self._point_sets.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores those of the resumed run."""
        self._seed = state_dict["seed"]
        self._restored = state_dict["point_sets"]

    def _apply(self, trainer: Trainer, loss: Tensor, point_sets: PointSets) -> Tensor:
        """The loss transform: adds the terms of all point sets, and measures when it is time."""
        unregularized = loss
        epoch, batch_idx = self._place
        measures = batch_idx % self.measure_every == 0
        for name, point_set in self._point_sets.items():
            points = point_sets[name].reshape(-1, *point_sets[name].shape[-2:])
            generator = torch.Generator().manual_seed(
                stream_key(self._seed or 0, epoch, batch_idx, trainer.global_rank, point_set.number)
            )
            if measures:
                self._measure(trainer, point_set, points.detach(), generator)
            if point_set.policy.soft_hand is not None and point_set.cv is not None:
                loss = point_set.policy.soft_hand.apply(loss, point_set.cv, point_set.target)
            weight = point_set.policy.weight_at(epoch + batch_idx / max(1, trainer.num_training_batches))
            if weight and points.requires_grad:
                chosen = _some(points, self.loss_matrices, generator)
                term = weight * cv_loss(chosen, point_set.target, _LOSS_SIMPLICES, generator)
                if measures:
                    point_set.figures["gradient_norm"] = _gradient_norm(term, point_sets[name])
                loss = loss + term
            if measures:
                point_set.figures["weight"] = weight
                point_set.figures["reconstruction_gradient_norm"] = _gradient_norm(unregularized, point_sets[name])
        return loss

    def _measure(self, trainer: Trainer, point_set: _PointSet, points: Tensor, generator: torch.Generator) -> None:
        estimate = volume_cv(_some(points, self.measure_matrices, generator), _MEASURE_SIMPLICES, generator)
        spread = estimate.cv.isfinite()
        parts = [spread, estimate.cv[spread], estimate.standard_error[spread].square(), torch.ones_like(spread)]
        sums: Any = trainer.strategy.reduce(torch.stack([part.double().sum() for part in parts]), reduce_op="sum")
        count, cvs, variances, matrices = sums.tolist()
        point_set.figures = {"target": point_set.target, "degenerate": 1 - count / matrices}
        if not count:
            return
        point_set.cv = cvs / count
        point_set.ema = (
            point_set.cv if point_set.ema is None else _EMA_DECAY * point_set.ema + (1 - _EMA_DECAY) * point_set.cv
        )
        error = variances**0.5 / count
        point_set.figures |= {
            "measured": point_set.cv,
            "standard_error": error,
            "lower": point_set.cv - 2 * error,
            "upper": point_set.cv + 2 * error,
            "ema": point_set.ema,
            "proximity": proximity(point_set.cv, point_set.target),
        }


class _Term:
    """The loss transform of a run, which holds its trainer; in a copied or pickled module it leaves the loss alone."""

    def __init__(self, apply: LossTransform | None = None) -> None:
        self._apply = apply

    def __call__(self, loss: Tensor, point_sets: PointSets) -> Tensor:
        return loss if self._apply is None else self._apply(loss, point_sets)

    def __reduce__(self) -> tuple[type["_Term"], tuple[()]]:
        return _Term, ()


def _some(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the matrices (N, V, D) at random, or all of them."""
    if len(points) <= count:
        return points
    return points[torch.randperm(len(points), generator=generator)[:count].to(points.device)]


def _gradient_norm(term: Tensor, points: Tensor) -> float:
    """Of a term of the loss with respect to a point set's points."""
    if not (points.requires_grad and term.requires_grad):
        return 0.0
    (gradient,) = torch.autograd.grad(term, points, retain_graph=True, allow_unused=True)
    return 0.0 if gradient is None else float(gradient.norm())
