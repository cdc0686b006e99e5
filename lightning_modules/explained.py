"""Fractions of variance unexplained, by group of samples."""

import torch
from torch import Tensor
from torchmetrics import Metric


class UnexplainedVariance(Metric):
    """Σ (û − u)² / Σ (u − ū)² over all numbers of all samples and ranks, for each of ``num_groups`` groups.

    Sums are taken in float64, as ū of heavy-tailed numbers needs.

    Args:
        num_groups: G.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, num_groups, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstructions: Tensor, targets: Tensor, groups: Tensor) -> None:
        """Adds û and u, (B, ...), of samples that belong to ``groups`` (B,) int64."""
        u = targets.detach().double().flatten(1)
        squares = (reconstructions.detach().double().flatten(1) - u).square().sum(1)
        self.sums.index_add_(1, groups, torch.stack([squares, u.sum(1), u.square().sum(1)]))
        self.counts.index_add_(0, groups, torch.full_like(groups, u.shape[1]))

    def compute(self) -> dict[int, Tensor]:
        """The fractions by group, scalar float64; groups without samples are left out."""
        squares, total, total_squares = self.sums
        fractions = squares / (total_squares - total.square() / self.counts)
        return {group: fractions[group] for group in self.counts.nonzero()[:, 0].tolist()}
