"""Free matrix: a network whose only parameter is one matrix."""

import torch
from torch import Tensor, nn


class FreeMatrix(nn.Module):
    """One parameter ``weight`` (rows, columns), zero at the start: what an optimizer is studied on by itself.

    Args:
        rows: m.
        columns: n.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        for name, size in (("rows", rows), ("columns", columns)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.weight = nn.Parameter(torch.zeros(rows, columns))

    def forward(self) -> Tensor:
        """The matrix, (rows, columns)."""
        return self.weight
