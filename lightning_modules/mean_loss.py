"""The mean of a loss over samples."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over all samples of all ranks of a loss that comes as means over batches.

    torchmetrics' own mean leaves NaN out, which would hide a diverged run; Lightning's logged mean rounds the number
    of samples to a multiple of the ranks.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int) -> None:
        """Adds a scalar loss, the mean over ``count`` samples."""
        self.total += loss.detach() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean, a scalar float32."""
        return self.total / self.count
