"""The precision of float32 products, as an argument."""

from typing import Literal, get_args

MatmulPrecision = Literal["highest", "high", "medium"]
"""As of ``torch.set_float32_matmul_precision``."""


def check_precision(name: str, precision: str) -> None:
    """Checks a matmul precision, which torch would only do at the first product.

    Raises:
        ValueError: it is none of :data:`MatmulPrecision`.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(f"{name} must be one of {get_args(MatmulPrecision)}, got {precision!r}")
