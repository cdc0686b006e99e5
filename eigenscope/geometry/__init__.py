"""Volumes of simplices, their coefficient of variation (CV), its closed form and loss term; effective rank."""

from eigenscope.geometry.cv_policy import CVPolicy, Phase, SoftHand, proximity
from eigenscope.geometry.points import effective_rank, random_unit_points, spread_matrices
from eigenscope.geometry.simplex_volumes import cayley_menger_volumes, simplex_volumes
from eigenscope.geometry.volume_cv import CVEstimate, cv_loss, expected_cv, has_cv, volume_cv

__all__ = [
    "CVEstimate",
    "CVPolicy",
    "Phase",
    "SoftHand",
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
