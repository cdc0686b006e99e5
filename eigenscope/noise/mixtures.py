"""Mixtures of noise types for many networks, and the images of a batch assigned to each of them."""

from collections.abc import Iterator, Sequence
from itertools import combinations, cycle
from typing import Literal, get_args

import torch
from torch import Tensor

from eigenscope.noise.distributions import NOISE_TYPES
from eigenscope.noise.streams import stream_key, uniform

MixtureKind = Literal["singles", "pairs", "quads", "all"]
_SIZES = {"singles": 1, "pairs": 2, "quads": 4}


def battery_mixtures(
    count: int, kinds: Sequence[MixtureKind], seed: int, types: Sequence[int] = range(len(NOISE_TYPES))
) -> tuple[tuple[int, ...], ...]:
    """Assigns a mixture of noise types to each of many batteries, the kinds in turn, so that each has its even share.

    The combinations of a kind come in a random order, a function of (seed, size), and one comes again only after all
    have been. The first mixtures of a larger count are those of a smaller one.

    Args:
        count: mixtures, at least 1.
        kinds: ``singles``, ``pairs`` and ``quads`` are combinations of one, two and four types, ``all`` is all of them.
            One that is named twice has twice the share.
        seed: of the orders.
        types: ids of the types to mix.

    Returns:
        ids by mixture, each in the order of ``types``.

    Raises:
        ValueError: the count is below 1, there is no kind or an unknown one, a type is named twice or there are too
            few.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not kinds or isinstance(kinds, str):
        raise ValueError(f"kinds must be a list of at least one of {', '.join(get_args(MixtureKind))}, got {kinds!r}")
    if len(set(types)) < len(types):
        raise ValueError(f"types must name every type once, got {list(types)}")
    supply: dict[str, Iterator[tuple[int, ...]]] = {}
    for kind in kinds:
        if kind not in get_args(MixtureKind):
            raise ValueError(f"kinds must be of {', '.join(get_args(MixtureKind))}, got {kind!r}")
        size = _SIZES.get(kind, len(types))
        if not 1 <= size <= len(types):
            raise ValueError(f"kinds: {kind} needs at least {max(1, size)} types, got {len(types)}")
        found = list(combinations(types, size))
        generator = torch.Generator().manual_seed(stream_key(seed, size))
        supply[kind] = cycle([found[place] for place in torch.randperm(len(found), generator=generator).tolist()])
    return tuple(next(supply[kind]) for _, kind in zip(range(count), cycle(kinds), strict=False))


def pick_from_mixtures(labels: Tensor, members: Tensor, images_per_battery: int, key: int) -> tuple[Tensor, Tensor]:
    """Draws for every battery some images of a batch whose type is in its mixture, without repetition.

    Args:
        labels: (B,) int64, the type of each image.
        members: (K, T) bool, the types of each battery's mixture.
        images_per_battery: b, images for each.
        key: of the draw, see :func:`eigenscope.noise.stream_key`; that of battery k depends on (key, k) alone.

    Returns:
        Places in the batch (K, b) int64, and whether each holds an image of the mixture, (K, b) bool: where a batch
        has fewer than b of them the rest are others, which are not to be trained on.

    Raises:
        ValueError: ``images_per_battery`` is not in 1 to B.
    """
    if not 1 <= images_per_battery <= len(labels):
        raise ValueError(
            f"images_per_battery must be in 1 to {len(labels)}, the images of the batch, got {images_per_battery}"
        )
    fitting = members[:, labels]
    draws = uniform(key, torch.arange(len(members), device=labels.device), len(labels))
    places = (draws + fitting).topk(images_per_battery).indices
    return places, fitting.gather(1, places)
