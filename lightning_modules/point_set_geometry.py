"""Geometric metrics of point sets on spheres, each beside its random and its untrained baseline."""

import math
from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from eigenscope.adapters.torch_names import KeepsDtypes
from eigenscope.charts import Chart, present
from eigenscope.geometry import expected_cv, has_cv, random_unit_points, spread_matrices
from eigenscope.geometry.metrics import EffectiveRank, VolumeCV
from eigenscope.lightning_modules.metrics import MeanLoss
from eigenscope.linalg import gram_svd
from eigenscope.protocols import PointSets

_MATRICES = 64  # measured of each batch, spread over it
_FIGURES = ("S0", "SD", "S_ratio", "effective_rank", "cv")
_TITLES = {
    "CV beside chance and no training": "cv",
    "effective rank": "effective_rank",
    "largest singular value": "S0",
    "smallest singular value": "SD",
    "largest over smallest singular value": "S_ratio",
}


class PointSetGeometry(KeepsDtypes):
    """Geometric metrics of matrices of V points on a sphere over an epoch, beside random and untrained baselines.

    An untrained encoder's geometry already looks like a discovery (at V = 256, D = 16: S₀ 4.80, effective rank 15.88,
    CV 0.201), so no metric is given alone: ``<metric>_random`` is that of independent uniform points, for the CV in
    closed form; ``<metric>_untrained`` that of the matrices handed to :meth:`note_untrained`, kept with the weights.

    Figures: the mean largest and smallest singular value ``S0`` and ``SD``, their ratio ``S_ratio``, mean
    ``effective_rank``, and mean ``cv`` of simplex volumes with its ``cv_standard_error`` and the band of two of them,
    ``cv_lower`` to ``cv_upper``. 64 matrices of each batch are measured; points in fewer than four dimensions have no
    CV.

    Args:
        num_points: V.
        dim: D.
    """

    untrained: Tensor

    def __init__(self, num_points: int, dim: int) -> None:
        super().__init__()
        self.S0, self.SD, self.effective_rank = MeanLoss(), MeanLoss(), EffectiveRank()
        self.cv = VolumeCV() if has_cv(num_points, dim) else None
        self.names = _FIGURES if self.cv is not None else _FIGURES[:-1]
        self.register_buffer("untrained", torch.full((len(self.names),), torch.nan, dtype=torch.float32))
        self.update(random_unit_points(_MATRICES, num_points, dim))
        self.random = self._figures()[0]
        if self.cv is not None:
            self.random["cv"] = expected_cv(dim)

    @torch.no_grad()
    def note_untrained(self, points: Tensor) -> None:
        """Takes the metrics of points (..., V, D) for those of no training."""
        self.update(points)
        figures, _ = self._figures()
        self.untrained.copy_(torch.tensor([figures[name] for name in self.names], dtype=torch.float64))

    @torch.no_grad()
    def update(self, points: Tensor) -> None:
        """Adds the matrices of a batch, (..., V, D)."""
        chosen = spread_matrices(points.detach(), _MATRICES)
        S = gram_svd(chosen, vectors="none", compute_dtype=torch.float64).S
        self.S0.update(S[:, 0].mean(), len(S))
        self.SD.update(S[:, -1].mean(), len(S))
        self.effective_rank.update(S)
        if self.cv is not None:
            self.cv.update(chosen)

    def compute(self) -> dict[str, float]:
        """The metrics since the last call and their baselines, over all ranks; forgets the former."""
        figures, errors = self._figures()
        baselines = {f"{name}_random": value for name, value in self.random.items()}
        if not self.untrained.isnan().any():
            pairs = zip(self.names, self.untrained.tolist(), strict=True)
            baselines |= {f"{name}_untrained": value for name, value in pairs}
        return figures | errors | baselines

    def _figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """The metrics since the last call, and how far the CV can be relied on."""
        S0, SD = float(self.S0.compute()), float(self.SD.compute())
        ratio = S0 / SD if SD else math.inf
        figures = {"S0": S0, "SD": SD, "S_ratio": ratio, "effective_rank": float(self.effective_rank.compute())}
        errors = {}
        if self.cv is not None:
            estimate = self.cv.compute()
            cv, error = float(estimate.cv), float(estimate.standard_error)
            figures["cv"] = cv
            errors = {"cv_standard_error": error, "cv_lower": cv - 2 * error, "cv_upper": cv + 2 * error}
        for metric in (self.S0, self.SD, self.effective_rank, self.cv):
            if metric is not None:
                metric.reset()
        return figures, errors


class LatentGeometry(nn.ModuleDict):
    """The :class:`PointSetGeometry` of every point set.

    Args:
        point_set_shapes: point set to (V, D).
    """

    def __init__(self, point_set_shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__({name: PointSetGeometry(*shape) for name, shape in point_set_shapes.items()})

    def note_untrained(self, point_sets: PointSets) -> None:
        """Takes the metrics of the point sets for those of no training, where there are none yet."""
        for name, points in point_sets.items():
            if self._of(name).untrained.isnan().any():
                self._of(name).note_untrained(points)

    def update_point_sets(self, point_sets: PointSets) -> None:
        """Adds the matrices of a batch."""
        for name, points in point_sets.items():
            self._of(name).update(points)

    def compute(self) -> dict[str, float]:
        """``geometry_<point_set>/<metric>`` since the last call, see :meth:`PointSetGeometry.compute`."""
        return {f"geometry_{name}/{k}": value for name in self for k, value in self._of(name).compute().items()}

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """The metrics of each point set beside their baselines, of the tags that were logged."""
        wanted = []
        for name in self:
            tag, section = f"geometry_{name}", f"Point set {name}"
            wanted += [
                Chart(
                    section,
                    "CV in validation ± 2 standard errors",
                    (f"{tag}/cv",),
                    band=(f"{tag}/cv_lower", f"{tag}/cv_upper"),
                ),
                *(
                    Chart(section, title, tuple(f"{tag}/{figure}{beside}" for beside in ("", "_random", "_untrained")))
                    for title, figure in _TITLES.items()
                ),
            ]
        return present(wanted, logged)

    def _of(self, name: str) -> PointSetGeometry:
        return cast(PointSetGeometry, self[name])
