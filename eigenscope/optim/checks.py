"""Checks that the optimizers of matrices share."""

from typing import Any, Literal, get_args

MatmulPrecision = Literal["highest", "high", "medium"]
"""As of ``torch.set_float32_matmul_precision``."""


def check_precision(name: str, precision: str) -> None:
    """Checks a matmul precision, which torch would only do at the first product.

    Raises:
        ValueError: it is none of :data:`MatmulPrecision`.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(f"{name} must be one of {get_args(MatmulPrecision)}, got {precision!r}")


def check_matrices(optimizer: str, group: dict[str, Any]) -> None:
    """Checks that a group of parameters is of matrices.

    Raises:
        ValueError: one is not 2-D.
    """
    names = group.get("param_names", [f"number {index}" for index in range(len(group["params"]))])
    for name, parameter in zip(names, group["params"], strict=True):
        if parameter.ndim != 2:
            raise ValueError(
                f"params of {optimizer} must be 2-D, got parameter {name} of shape {tuple(parameter.shape)}: route it "
                "elsewhere, as SplitOptimizer does"
            )
