"""Errors of many networks on many kinds of images."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CrossErrors(Metric):
    """Mean over all samples of all ranks of K networks' errors, for each of T labels.

    Args:
        count: K.
        num_labels: T.
    """

    full_state_update = False
    totals: Tensor
    counts: Tensor

    def __init__(self, count: int, num_labels: int) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(count, num_labels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, means: Tensor, labels: Tensor) -> None:
        """Adds a batch: mean errors (K, T), not read where a label has no images, and the labels (B,) int64."""
        counts = labels.bincount(minlength=len(self.counts))
        self.totals += torch.where(counts > 0, means * counts, 0)
        self.counts += counts

    def compute(self) -> tuple[Tensor, Tensor]:
        """The means, (K, T) float64, nan for labels without samples; and which labels have some, (T,) bool."""
        return self.totals / self.counts, self.counts > 0
