"""Sign convention of singular vectors and eigenvectors."""

import torch
from torch import Tensor


def fix_signs(vectors: Tensor) -> Tensor:
    """Turns every row so that its entry of largest magnitude is positive (the first such entry on a tie).

    An eigenvector is defined up to its sign, so a solver may return either; after this rule the vector is a function
    of the matrix wherever the eigenvalue is simple and the largest entry unique.

    Args:
        vectors: (..., r, n), one vector a row, as in the ``Vh`` of an SVD.

    Returns:
        (..., r, n), same dtype; rows of zeros are returned as they are.
    """
    pivot = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    return torch.where(pivot < 0, -vectors, vectors)
