"""Multithreaded LAPACK over a large batch of small matrices."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.func import debug_unwrap

_MATRICES_PER_THREAD = 32  # about 1 ms of work at 32×32, ten times what starting a thread costs


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """As ``torch.linalg.eigh``: eigenvalues (..., n) ascending and vectors (..., n, n) of symmetric matrices.

    On a CPU torch hands LAPACK one matrix after the other from one thread. Where no gradient is recorded, the batch is
    shared here among ``torch.get_num_threads()`` threads; each matrix is treated alone, so the results are the same to
    the bit.
    """
    values, vectors = _in_threads(torch.linalg.eigh, A)
    return values, vectors


def eigvalsh(A: Tensor) -> Tensor:
    """As ``torch.linalg.eigvalsh``: eigenvalues (..., n) ascending; threads as in :func:`eigh`."""
    (values,) = _in_threads(lambda chunk: (torch.linalg.eigvalsh(chunk),), A)
    return values


def _prepare_thread() -> None:
    """One core a thread, or LAPACK's own threads get in each other's way; and no gradient, as in the caller."""
    torch.set_num_threads(1)  # this thread's, but also the default of later threads, which the caller puts back
    torch.set_grad_enabled(False)


def _is_plain(A: Tensor) -> bool:
    """Whether nothing but numbers is asked for: gradients and transforms such as vmap are bound to their thread."""
    return A.device.type == "cpu" and type(A) is Tensor and not torch.is_grad_enabled() and debug_unwrap(A) is A


def _in_threads(function: Callable[[Tensor], tuple[Tensor, ...]], A: Tensor) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():
        return tuple(function(A))
    batch = A.shape[:-2]
    cores = torch.get_num_threads()
    threads = min(cores, batch.numel() // _MATRICES_PER_THREAD)
    if threads < 2 or not _is_plain(A):
        return tuple(function(A))
    try:
        with ThreadPoolExecutor(threads, initializer=_prepare_thread) as pool:
            parts = list(pool.map(function, A.flatten(0, -3).chunk(threads)))
    finally:
        torch.set_num_threads(cores)
    return tuple(torch.cat(factor).reshape(*batch, *factor[0].shape[1:]) for factor in zip(*parts, strict=True))
