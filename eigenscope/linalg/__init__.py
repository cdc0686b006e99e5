"""Batched linear algebra for spectra: thin SVD and sign conventions."""

from eigenscope.linalg.gram_svd import GramSVD, gram_svd
from eigenscope.linalg.signs import fix_signs

__all__ = ["GramSVD", "fix_signs", "gram_svd"]
