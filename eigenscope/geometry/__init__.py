"""Volumes of simplices among the rows of a matrix, their CV, its closed form and discipline, and effective rank."""

from eigenscope.geometry.discipline import Phase, SectorPolicy, SoftHand, proximity
from eigenscope.geometry.effective_rank import effective_rank
from eigenscope.geometry.expected_cv import expected_cv
from eigenscope.geometry.matrices import random_unit_points, spread_matrices
from eigenscope.geometry.metrics import EffectiveRank, VolumeCV
from eigenscope.geometry.simplex_volumes import cayley_menger_volumes, simplex_volumes
from eigenscope.geometry.volume_cv import CVEstimate, cv_loss, has_cv, volume_cv

__all__ = [
    "CVEstimate",
    "EffectiveRank",
    "Phase",
    "SectorPolicy",
    "SoftHand",
    "VolumeCV",
    "cayley_menger_volumes",
    "cv_loss",
    "effective_rank",
    "expected_cv",
    "has_cv",
    "proximity",
    "random_unit_points",
    "simplex_volumes",
    "spread_matrices",
    "volume_cv",
]
