"""Multi-query associative recall (MQAR): sequences of key-value pairs, then queries."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eigenscope.data.epoch_sampler import EpochIndex, epochs_and_samples
from eigenscope.noise.streams import Streams, stream_key

NO_ANSWER = -100
"""The label of a token that asks for nothing; torch's cross-entropy ignores it."""


@dataclass(frozen=True)
class RecallTask:
    """Task of multi-query associative recall (MQAR): a context of key-value pairs among fillers, then queried keys.

    Tokens 0 to ``keys`` − 1 are keys, the next ``values`` are values, and the last ``fillers`` mean nothing.

    Args:
        context: tokens before the queries.
        pairs: keys with their values in the context; fillers take what they leave.
        queries: keys asked for after the context, at most ``pairs``.
        keys: different keys, at least ``pairs``.
        values: different values.
        fillers: different fillers.

    Raises:
        ValueError: a number is out of its range; the message names it.
    """

    context: int = 512
    pairs: int = 64
    queries: int = 64
    keys: int = 64
    values: int = 64
    fillers: int = 16

    def __post_init__(self) -> None:
        for name in ("context", "pairs", "queries", "keys", "values", "fillers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context < 2 * self.pairs:
            raise ValueError(f"context must hold pairs {self.pairs} of two tokens each, got {self.context}")
        for name in ("queries", "keys"):
            if (getattr(self, name) < self.pairs) if name == "keys" else (getattr(self, name) > self.pairs):
                least = "at least" if name == "keys" else "at most"
                raise ValueError(f"{name} must be {least} pairs {self.pairs}, got {getattr(self, name)}")

    @property
    def vocabulary(self) -> int:
        """All different tokens."""
        return self.keys + self.values + self.fillers


@dataclass(frozen=True)
class ShorterContext:
    """A curriculum step: some epochs with a shorter context.

    Args:
        epochs: how many.
        context: tokens before the queries.
        pairs: in that context; no more than these are asked for.

    Raises:
        ValueError: ``epochs`` < 1.
    """

    epochs: int
    context: int
    pairs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs of a shorter context must be at least 1, got {self.epochs}")

    def of(self, task: RecallTask) -> RecallTask:
        """The task with this context.

        Raises:
            ValueError: it does not go with the task's other numbers.
        """
        return replace(task, context=self.context, pairs=self.pairs, queries=min(task.queries, self.pairs))


def draw_recall(task: RecallTask, key: int, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Draws sequences of multi-query associative recall.

    Args:
        task: what they are made of.
        key: of the streams, from :func:`eigenscope.noise.stream_key`.
        samples: (N,) int64; a sequence depends on the key and its sample alone.

    Returns:
        tokens (N, context + queries) int64, and labels of that shape: under each query the value that stood behind
        its key, :data:`NO_ANSWER` under the context. No key is twice among the pairs, nor among the queries.
    """
    streams = Streams(key, samples)
    units = task.context - task.pairs  # each a pair or a filler
    keys = _choice(streams, task.keys, task.pairs)
    values = task.keys + _below(streams, task.values, task.pairs)
    places = _choice(streams, units, task.pairs).sort(1).values + torch.arange(task.pairs, device=samples.device)
    context = task.keys + task.values + _below(streams, task.fillers, task.context)
    context = context.scatter(1, places, keys).scatter(1, places + 1, values)
    asked = _choice(streams, task.pairs, task.queries)
    tokens = torch.cat([context, keys.gather(1, asked)], 1)
    return tokens, torch.cat([torch.full_like(context, NO_ANSWER), values.gather(1, asked)], 1)


def _choice(streams: Streams, among: int, count: int) -> Tensor:
    """(N, count) different numbers below ``among``, in random order."""
    return streams.bits(among).argsort(dim=1, stable=True)[:, :count]


def _below(streams: Streams, end: int, count: int) -> Tensor:
    """(N, count) numbers below ``end``, equally likely to within ``end`` 2^-31."""
    return (streams.bits(count) >> 33).bitwise_and_((1 << 31) - 1) % end


class RecallDataset(Dataset[tuple[Tensor, Tensor]]):
    """Data set of MQAR sequences, drawn on access.

    Like :class:`~eigenscope.data.ImageDataset` it yields whole batches, each of one epoch, and a sequence depends on
    (seed, epoch, index) alone. A *fixed* set is the same in every epoch, and has no shorter contexts.

    Args:
        size: sequences in an epoch.
        task: what they are made of.
        shorter: the first epochs' contexts, one after the other.
        seed: of the sequences.
        fixed: the same in every epoch.

    Raises:
        ValueError: a shorter context does not go with the task, or a fixed set is to have one.
    """

    def __init__(
        self, size: int, task: RecallTask, shorter: Sequence[ShorterContext] = (), *, seed: int, fixed: bool
    ) -> None:
        if fixed and shorter:
            raise ValueError(f"a fixed set is the same in every epoch and can have no shorter contexts, got {shorter}")
        self.size = size
        self.tasks = [*(part.of(task) for part in shorter), task]
        self.ends = list(accumulate(part.epochs for part in shorter))
        self.seed = seed
        self.fixed = fixed

    def __len__(self) -> int:
        """Number of sequences in an epoch."""
        return self.size

    def task_at(self, epoch: int) -> RecallTask:
        """What the sequences of an epoch, counted from 0, are made of."""
        return self.tasks[bisect_right(self.ends, epoch)]

    def __getitem__(self, key: EpochIndex | int) -> tuple[Tensor, Tensor]:
        """Tokens and labels of one sequence, (context + queries,) int64 each."""
        tokens, labels = self.__getitems__([key])
        return tokens[0], labels[0]

    def __getitems__(self, keys: Sequence[EpochIndex | int]) -> tuple[Tensor, Tensor]:
        """Tokens and labels of a batch of one epoch, (B, context + queries) int64 each."""
        epochs, samples = epochs_and_samples(keys)
        epoch = 0 if self.fixed else int(epochs[0])
        return draw_recall(self.task_at(epoch), stream_key(self.seed, epoch), samples)
