"""Batched linear algebra for spectra: thin SVD, sign conventions, angles between eigenbases, TF32."""

from eigenscope.linalg.eigenbases import principal_angles, sort_eigenbasis, top_angle, weighted_subspace_distance
from eigenscope.linalg.gram_svd import GramSVD, fix_signs, gram_svd
from eigenscope.linalg.randomized_svd import TruncatedSVD, randomized_svd
from eigenscope.linalg.tf32 import emulate_tf32, round_to_tf32

__all__ = [
    "GramSVD",
    "TruncatedSVD",
    "emulate_tf32",
    "fix_signs",
    "gram_svd",
    "principal_angles",
    "randomized_svd",
    "round_to_tf32",
    "sort_eigenbasis",
    "top_angle",
    "weighted_subspace_distance",
]
