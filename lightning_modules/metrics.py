"""Metrics over all samples and ranks: mean loss, means by group, fraction of variance unexplained, cross errors.

All sum in float64, at whatever precision the network is trained.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from eigenscope.adapters.torch_names import KeepsDtypes


class MeanLoss(KeepsDtypes, Metric):
    """Mean over all samples of all ranks of a loss that comes as means over batches.

    torchmetrics' own mean leaves NaN out, which would hide a diverged run; Lightning's logged mean rounds the number
    of samples to a multiple of the ranks.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int) -> None:
        """Adds a scalar loss, the mean over ``count`` samples."""
        self.total += loss.detach().double() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean, a scalar float32."""
        return (self.total / self.count).float()


class GroupedMean(KeepsDtypes, Metric):
    """Mean over all samples of all ranks of a metric per sample, for each of ``num_groups`` groups.

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
        """Adds the metrics (B,) of samples that belong to ``groups`` (B,) int64."""
        self.totals.index_add_(0, groups, values.detach().double())
        self.counts.index_add_(0, groups, torch.ones_like(groups))

    def compute(self) -> dict[int, Tensor]:
        """The means by group, scalar float64; groups without samples are left out."""
        means = self.totals / self.counts
        return {group: means[group] for group in self.counts.nonzero()[:, 0].tolist()}


class FractionVarianceUnexplained(KeepsDtypes, Metric):
    """FVU, Σ (û − u)² / Σ (u − ū)², over all entries of all samples and ranks, for each of ``num_groups`` groups.

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


class CrossErrors(KeepsDtypes, Metric):
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
        self.totals += torch.where(counts > 0, means.double() * counts, 0)
        self.counts += counts

    def compute(self) -> tuple[Tensor, Tensor]:
        """The means, (K, T) float64, nan for labels without samples; and which labels have some, (T,) bool."""
        return self.totals / self.counts, self.counts > 0
