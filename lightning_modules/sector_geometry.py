"""Geometric figures of points on a sphere, each beside its random and its untrained baseline."""

from typing import cast

import torch
from torch import Tensor, nn

from eigenscope.geometry import (
    VolumeCV,
    effective_rank,
    expected_cv,
    random_unit_points,
    spread_matrices,
    volume_cv,
)
from eigenscope.linalg import gram_svd
from lightning_modules.mean_loss import MeanLoss

_MATRICES = 64  # measured of each batch, spread over it
_SPECTRAL = ("S0", "SD", "S_ratio", "effective_rank")


class SectorGeometry(nn.Module):
    """Collects what is said of matrices of V points on a sphere over an epoch, beside what chance and no training give.

    An untrained encoder's geometry already looks like a discovery (at V = 256, D = 16: S₀ 4.80, effective rank 15.88,
    CV 0.201), so no figure is given alone: ``<figure>_random`` is that of independent uniform points, for the CV in
    closed form; ``<figure>_untrained`` that of the matrices handed to :meth:`note_untrained`, kept with the weights.

    Figures: the largest and smallest singular value ``S0`` and ``SD``, their ratio ``S_ratio``, ``effective_rank``,
    and ``cv`` of simplex volumes with ``cv_standard_error``. 64 matrices of each batch are measured; points in fewer
    than four dimensions have no CV.

    Args:
        num_points: V.
        dim: D.
    """

    untrained: Tensor

    def __init__(self, num_points: int, dim: int) -> None:
        super().__init__()
        self.means = nn.ModuleList(MeanLoss() for _ in _SPECTRAL)
        self.cv = VolumeCV() if dim >= 4 and num_points >= 5 else None
        points = random_unit_points(_MATRICES, num_points, dim)
        self.random = _spectral_figures(points).mean(-1).tolist() + ([expected_cv(dim)] if self.cv is not None else [])
        self.names = [*_SPECTRAL, "cv"][: len(self.random)]
        self.register_buffer("untrained", torch.full((len(self.names),), torch.nan))

    @torch.no_grad()
    def note_untrained(self, points: Tensor) -> None:
        """Takes the figures of points (..., V, D) for those of no training."""
        chosen = spread_matrices(points.detach(), _MATRICES)
        figures = [*_spectral_figures(chosen).mean(-1)]
        if self.cv is not None:
            generator = torch.Generator().manual_seed(0)
            figures.append(volume_cv(chosen, num_simplices=200, generator=generator).cv.mean())
        self.untrained.copy_(torch.stack(figures))

    @torch.no_grad()
    def update(self, points: Tensor) -> None:
        """Adds the matrices of a batch, (..., V, D)."""
        chosen = spread_matrices(points.detach(), _MATRICES)
        for mean, values in zip(self._means(), _spectral_figures(chosen), strict=True):
            mean.update(values.mean(), len(chosen))
        if self.cv is not None:
            self.cv.update(chosen)

    def compute(self) -> dict[str, float]:
        """The figures since the last call and their baselines, over all ranks; forgets the former."""
        figures = {name: float(mean.compute()) for name, mean in zip(_SPECTRAL, self._means(), strict=True)}
        if self.cv is not None:
            estimate = self.cv.compute()
            figures |= {"cv": float(estimate.cv), "cv_standard_error": float(estimate.standard_error)}
            self.cv.reset()
        for mean in self._means():
            mean.reset()
        figures |= {f"{name}_random": value for name, value in zip(self.names, self.random, strict=True)}
        if not self.untrained.isnan().any():
            pairs = zip(self.names, self.untrained.tolist(), strict=True)
            figures |= {f"{name}_untrained": value for name, value in pairs}
        return figures

    def _means(self) -> list[MeanLoss]:
        return [cast(MeanLoss, mean) for mean in self.means]


def _spectral_figures(points: Tensor) -> Tensor:
    """(4, N): S₀, S_D, S₀/S_D and effective rank of N matrices."""
    S = gram_svd(points, vectors="none", compute_dtype=torch.float64).S
    return torch.stack([S[:, 0], S[:, -1], S[:, 0] / S[:, -1], effective_rank(S)])
