"""Stratified division of a labelled set."""

import torch
from torch import Tensor


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divides indices so that every class gives the same fraction, rounded, to the second part.

    Args:
        labels: (N,) int64 class of every sample.
        fraction: share of the second part, between 0 and 1.
        seed: of the choice.

    Returns:
        Two sorted int64 index vectors, (N − M,) and (M,), that together hold every index once.

    Raises:
        ValueError: ``fraction`` is not in (0, 1), or leaves a class without a sample in one of the parts.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # by class, random within a class
    counts = labels.bincount()
    counts = counts[counts > 0]
    taken = (counts * fraction).round().long()
    if (taken < 1).any() or (taken >= counts).any():
        raise ValueError(
            f"fraction {fraction} leaves a class empty: the smallest class has {int(counts.min())} samples"
        )
    starts = counts.cumsum(0) - counts
    rank_in_class = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    second = rank_in_class < taken.repeat_interleave(counts)
    return order[~second].sort().values, order[second].sort().values
