"""LAPACK over a large batch of small matrices, on all cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_MATRICES_PER_THREAD = 32  # about 1 ms of work at 32×32, ten times what starting a thread costs


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """As ``torch.linalg.eigh``: eigenvalues (..., n) ascending and vectors (..., n, n) of symmetric matrices.

    On a CPU torch hands LAPACK one matrix after the other from one thread. Here the batch is shared among
    ``torch.get_num_threads()`` threads; each matrix is treated alone, so the results are the same to the bit.
    """
    values, vectors = _in_threads(torch.linalg.eigh, A)
    return values, vectors


def eigvalsh(A: Tensor) -> Tensor:
    """As ``torch.linalg.eigvalsh``: eigenvalues (..., n) ascending; threads as in :func:`eigh`."""
    (values,) = _in_threads(lambda chunk: (torch.linalg.eigvalsh(chunk),), A)
    return values


def _in_threads(function: Callable[[Tensor], tuple[Tensor, ...]], A: Tensor) -> tuple[Tensor, ...]:
    batch = A.shape[:-2]
    threads = min(torch.get_num_threads(), batch.numel() // _MATRICES_PER_THREAD)
    if A.device.type != "cpu" or threads < 2 or torch.compiler.is_compiling():
        return tuple(function(A))
    grad = torch.is_grad_enabled()  # a property of the thread

    def work(chunk: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(grad):
            return function(chunk)

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(work, A.flatten(0, -3).chunk(threads)))
    return tuple(torch.cat(factor).reshape(*batch, *factor[0].shape[1:]) for factor in zip(*parts, strict=True))
