"""Refusal of matrices with NaN or infinity, which LAPACK reports at some sizes and not at others."""

import torch
from torch import Tensor, nn
from torch.func import debug_unwrap
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out


def has_values(x: Tensor) -> bool:
    """Whether there are numbers to look at: not while compiling, in functorch's transforms, or on fake tensors."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type != "meta"
        and debug_unwrap(x) is x
    )


def refuse_non_finite(name: str, x: Tensor) -> None:
    """Checks the entries of an argument, or their largest magnitudes; on a GPU the host waits for them.

    Raises:
        torch.linalg.LinAlgError: one is not finite.
    """
    if not bool(x.isfinite().all()):
        raise LinAlgError(f"{name} must be finite, got a matrix with NaN or infinity")
