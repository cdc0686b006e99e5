"""Curriculum over noise types: tiers, unlocked at given epochs or when a score stalls."""

from collections.abc import Sequence

import torch

from eigenscope.noise.distributions import CURRICULUM_TIERS, noise_ids

_NEVER = torch.iinfo(torch.int64).max


class Curriculum:
    """Tiers of noise types that are unlocked one after the other, at fixed epochs or when a score stalls.

    The epochs at which tiers were unlocked lie in shared memory, so that the loader's workers, which hold copies of
    the data set, see a tier that was unlocked after they were started.

    Args:
        epochs: the epochs, counted from 0, at whose start the second, third, ... tier is unlocked; or
        patience: unlock the next tier after so many validations without a better score.
        monitor: the logged figure that ``patience`` watches; less is better.
        tiers: names of noise types by tier; None takes the reported tiers.

    Raises:
        ValueError: neither or both of ``epochs`` and ``patience`` are given, epochs are negative or not increasing
            or not one fewer than the tiers, or a type is unknown or named twice.
    """

    def __init__(
        self,
        epochs: Sequence[int] | None = None,
        patience: int | None = None,
        monitor: str = "val/mse",
        tiers: Sequence[Sequence[str]] | None = None,
    ) -> None:
        if (epochs is None) == (patience is None):
            raise ValueError(f"a curriculum takes either epochs or patience, got {epochs} and {patience}")
        if patience is not None and patience < 1:
            raise ValueError(f"patience of a curriculum must be at least 1, got {patience}")
        self.tiers = CURRICULUM_TIERS if tiers is None else tuple(noise_ids(tier) for tier in tiers)
        flat = [kind for tier in self.tiers for kind in tier]
        if not self.tiers or not all(self.tiers) or len(set(flat)) < len(flat):
            raise ValueError(f"tiers of a curriculum must be non-empty and name every type once, got {tiers}")
        self.patience = patience
        self.monitor = monitor
        self.unlocked_at = torch.zeros(len(self.tiers), dtype=torch.int64)
        self.unlocked_at.share_memory_()  # type: ignore[no-untyped-call]
        if epochs is not None:
            if any(epoch < 0 for epoch in epochs):
                raise ValueError(f"epochs of a curriculum must be at least 0, got {list(epochs)}")
            if not all(isinstance(epoch, int) and epoch < _NEVER for epoch in epochs):
                raise ValueError(f"epochs of a curriculum must be whole numbers below 2^63 - 1, got {list(epochs)}")
            if len(epochs) != len(self.tiers) - 1 or list(epochs) != sorted(epochs):
                raise ValueError(
                    f"epochs of a curriculum must be {len(self.tiers) - 1} increasing numbers, one for each tier after "
                    f"the first, got {list(epochs)}"
                )
            self.unlocked_at[1:] = torch.tensor(epochs, dtype=torch.int64)
        self.lock()

    def lock(self) -> None:
        """With patience, locks every tier but the first."""
        if self.patience is not None:
            self.unlocked_at[1:] = _NEVER

    @property
    def types(self) -> tuple[int, ...]:
        """The ids of all types."""
        return tuple(kind for tier in self.tiers for kind in tier)

    def types_at(self, epoch: int) -> tuple[int, ...]:
        """The ids of the types that are unlocked in an epoch, in the order of the tiers."""
        unlocked = (self.unlocked_at <= epoch).tolist()
        return tuple(kind for tier, open_ in zip(self.tiers, unlocked, strict=True) if open_ for kind in tier)

    def unlock_next(self, epoch: int) -> None:
        """Unlocks the next tier from an epoch on; does nothing once all are."""
        waiting = (self.unlocked_at == _NEVER).nonzero()
        if len(waiting):
            self.unlocked_at[waiting[0]] = epoch
