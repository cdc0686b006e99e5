"""Sampler with a shuffled order per epoch, shared by all ranks."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from eigenscope.noise import stream_key

_AT_ONCE = 4096  # Python integers, which take five times the memory of the order's


class EpochIndex(NamedTuple):
    """A sample as visited in an epoch: what a data set needs to augment it the same way wherever it is loaded."""

    epoch: int
    sample: int


def epochs_and_samples(keys: Sequence[EpochIndex | int]) -> tuple[Tensor, Tensor]:
    """Both parts of what a loader asks for, (B,) int64 each; a plain integer stands for a sample of epoch 0."""
    pairs = [key if isinstance(key, tuple) else EpochIndex(0, key) for key in keys]
    epochs, samples = torch.tensor(pairs, dtype=torch.int64).unbind(1)
    return epochs, samples


class EpochSampler(DistributedSampler[EpochIndex]):
    """Yields every sample of an epoch exactly once over all ranks, as (epoch, sample).

    Rank r visits positions r, r + ranks, r + 2 ranks, ... of one order that all ranks share, so that the ranks'
    batches of size b make up the batch of size b × ranks that one process would see. A subclass of torch's sampler
    only so that Lightning recognises it, leaves it in place and calls ``set_epoch``; torch's own repeats samples
    where the ranks do not divide the data.

    Args:
        size: samples in the data set.
        shuffle: a new random order every epoch, a function of (seed, epoch); otherwise by index.
        even: give all ranks the same number, dropping fewer than ``num_replicas`` samples a epoch, as training needs.
        seed: of the orders.
        num_replicas: ranks.
        rank: this rank.

    Attributes:
        start: samples of this rank that the next iteration leaves out, as a run does that was stopped after them; the
            iterations after it, and other epochs, begin at 0.
    """

    def __init__(
        self, size: int, *, shuffle: bool, even: bool, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(
            range(size),  # type: ignore[arg-type]  # only its length is asked for
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=even,
        )
        self.size = size
        self.start = 0

    def __len__(self) -> int:
        """Samples that this rank visits in an epoch."""
        per_rank, left = divmod(self.size, self.num_replicas)
        return per_rank + (not self.drop_last and self.rank < left)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; another one than before begins at its start."""
        if epoch != self.epoch:
            self.start = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[EpochIndex]:
        """Iterates over this rank's part of the current epoch."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(stream_key(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        start, self.start = self.start, 0
        mine = order[self.rank :: self.num_replicas][: len(self)]
        for first in range(start, len(mine), _AT_ONCE):
            for sample in mine[first : first + _AT_ONCE].tolist():
                yield EpochIndex(self.epoch, sample)
