"""Data loader of all data modules: keyed samples in one order for any number of ranks; fingerprints of data."""

import hashlib
import json
import os
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eigenscope.data import EpochSampler
from eigenscope.loader_processes import guard_loader_processes

Batch = tuple[Tensor, Tensor]


class ResumableLoader(DataLoader[Batch]):
    """A loader that can begin in the middle of an epoch, as Lightning knows by its two methods.

    With ``overfit_batches`` Lightning puts a sampler of its own in, which begins every epoch at its start.

    It keeps no count of batches, which would run ahead by those that are on their way: the trainer knows how many were
    trained, and :class:`~eigenscope.callbacks.ExactResume` tells the loader of a resumed run.
    """

    def state_dict(self) -> dict[str, int]:
        """The epoch, from its start."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next iteration begin in an epoch, after a number of batches of this rank."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(state_dict["epoch"])
            self.sampler.start = state_dict["batches"] * cast(int, self.batch_size)


def check_loading(batch_size: int, num_workers: int | Literal["auto"]) -> None:
    """Checks the options that all data modules share.

    Raises:
        ValueError: one is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if num_workers != "auto" and num_workers < 0:
        raise ValueError(f"num_workers must be 'auto' or at least 0, got {num_workers}")


def run_seed(trainer: Trainer | None) -> int:
    """The seed of the run; to be called on all ranks at once, in ``setup``."""
    return int(trainer.strategy.broadcast(torch.initial_seed())) if trainer else torch.initial_seed()


def make_loader(
    trainer: Trainer | None,
    dataset: Dataset[Batch],
    name: str,
    *,
    size: int,
    batch_size: int,
    num_workers: int | Literal["auto"],
    train: bool,
    seed: int = 0,
) -> DataLoader[Batch]:
    """A loader of this rank's share of a data set.

    Args:
        trainer: whose ranks share the data; None is a single process.
        dataset: takes a list of :class:`~eigenscope.data.EpochIndex` and returns a whole batch.
        name: of the set, for messages.
        size: samples.
        batch_size: over all ranks.
        num_workers: processes of this rank; ``auto`` is its cores, at most 8.
        train: shuffled, in whole batches only; otherwise every sample once, in order.
        seed: of the order.

    Raises:
        ValueError: batch size or data do not go round.
    """
    ranks, rank, local_ranks = 1, 0, 1
    if trainer is not None:
        ranks, rank, local_ranks = trainer.world_size, trainer.global_rank, trainer.num_devices
    if batch_size % ranks:
        raise ValueError(f"batch_size is over all ranks and must be a multiple of {ranks}, got {batch_size}")
    if size < ranks:
        raise ValueError(f"the {name} set of {size} images is too small for {ranks} ranks")
    workers = min(8, max(1, _cores() // max(1, local_ranks))) if num_workers == "auto" else num_workers
    guard_loader_processes()
    return ResumableLoader(
        dataset,
        batch_size=batch_size // ranks,
        sampler=EpochSampler(size, shuffle=train, even=train, seed=seed, num_replicas=ranks, rank=rank),
        drop_last=train,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # for seeds of workers, which nothing uses: the run's own stream is not drawn from
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    """The data set yields whole batches; a lambda could not be sent to a spawned worker."""
    return batch


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(size: int, *content: Any) -> str:
    """The beginning of a SHA-256 and the number of samples: ``3f2a9c51d07e (10,000 samples)``.

    Args:
        size: samples of the set.
        *content: tensors, taken with shape, dtype and every byte; anything else as JSON.
    """
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous()
            digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
            digest.update(part.numpy())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return f"{digest.hexdigest()[:12]} ({size:,} samples)"
