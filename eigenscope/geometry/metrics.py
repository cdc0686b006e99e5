"""Torchmetrics of geometry: means of effective rank, spectrum and volume CV over a data set."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from eigenscope.adapters.torch_names import KeepsDtypes
from eigenscope.geometry.points import effective_rank
from eigenscope.geometry.volume_cv import CVEstimate, volume_cv
from eigenscope.noise import stream_key


class VolumeCV(KeepsDtypes, Metric):
    """Mean CV of 4-simplex volumes over all matrices of all updates and ranks.

    The standard error of the mean is put together from the matrices' own, √(sum of squares) / count: it is the error
    made by drawing simplices, for the matrices seen. It is not the spread between matrices, which would say how well
    these stand for others, and which a single matrix, such as a codebook, does not have. Seen twice, a matrix counts
    as two, with new simplices.

    The draws are a function of (seed, number of the update since the last reset, rank), so each validation epoch
    repeats them and a difference between epochs is not one of draws. The rank is in it because the same draws on
    every rank would not average out for a matrix that all ranks share.

    Args:
        num_simplices: 4-simplices per matrix and update, at least 2.
        seed: of the draws.

    Raises:
        ValueError: ``num_simplices`` < 2, or points that :func:`eigenscope.geometry.volume_cv` refuses.
    """

    full_state_update = False
    total: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_simplices: int = 200, seed: int = 0) -> None:
        super().__init__()
        if num_simplices < 2:
            raise ValueError(f"num_simplices must be at least 2, got {num_simplices}: one volume has no spread")
        self.num_simplices = num_simplices
        self.seed = seed
        self._earlier_updates = 0
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("variance", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Updates, and returns the CVEstimate of this update's matrices alone."""
        self._earlier_updates = self.update_count  # which torchmetrics resets for the length of the call
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._earlier_updates = 0

    def update(self, points: Tensor) -> None:
        """Adds the matrices of ``points`` (..., V, D)."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        key = stream_key(self.seed, self._earlier_updates + self.update_count, rank)
        estimate = volume_cv(points.detach(), self.num_simplices, torch.Generator().manual_seed(key))
        self.total += estimate.cv.double().sum()
        self.variance += estimate.standard_error.double().square().sum()
        self.count += estimate.cv.numel()

    def compute(self) -> CVEstimate:
        """The mean and its standard error, scalars in float32."""
        return CVEstimate((self.total / self.count).float(), (self.variance.sqrt() / self.count).float())


class EffectiveRank(KeepsDtypes, Metric):
    """Mean effective rank over all spectra of all updates and ranks; see :func:`eigenscope.geometry.points`."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, S: Tensor) -> None:
        """Adds the spectra of ``S`` (..., r)."""
        ranks = effective_rank(S.detach())
        self.total += ranks.double().sum()
        self.count += ranks.numel()

    def compute(self) -> Tensor:
        """The mean, a scalar float32."""
        return (self.total / self.count).float()
