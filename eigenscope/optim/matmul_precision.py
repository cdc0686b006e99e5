"""The precision of float32 products, as an argument."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

MatmulPrecision = Literal["highest", "high", "medium"]
"""As of ``torch.set_float32_matmul_precision``."""


def check_precision(name: str, precision: str) -> None:
    """Checks a matmul precision, which torch would only do at the first product.

    Raises:
        ValueError: it is none of :data:`MatmulPrecision`.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(f"{name} must be one of {get_args(MatmulPrecision)}, got {precision!r}")


@contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """A context in which float32 products have a precision, and after which they have the one they had before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
