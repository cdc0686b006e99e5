"""Means of a figure by group of samples."""

import torch
from torch import Tensor
from torchmetrics import Metric


class GroupedMean(Metric):
    """Mean over all samples of all ranks of a figure per sample, for each of ``num_groups`` groups.

    Args:
        num_groups: G.
    """

    full_state_update = False
    totals: Tensor
    counts: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(num_groups, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor, groups: Tensor) -> None:
        """Adds the figures (B,) of samples that belong to ``groups`` (B,) int64."""
        self.totals.index_add_(0, groups, values.detach().double())
        self.counts.index_add_(0, groups, torch.ones_like(groups))

    def compute(self) -> dict[int, Tensor]:
        """The means by group, scalar float64; groups without samples are left out."""
        means = self.totals / self.counts
        return {group: means[group] for group in self.counts.nonzero()[:, 0].tolist()}
