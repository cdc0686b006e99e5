"""Reference snapshots of eigenbases that later ones are compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eigenscope.optim.eigenbases.rotation import Eigenbasis
from eigenscope.optim.eigenbases.snapshots import EigenbasisSnapshot, Side

PRE_SPIKE, POST_SPIKE, _PREVIOUS = "pre_spike", "post_spike", "previous"


class ReferenceSnapshots:
    """Keeps the snapshots that measurements at every n-th step need, and no others.

    Args:
        references: ``previous``, the state one step before the measured one; ``lag:n``, n steps before;
            ``pre_spike`` and ``post_spike``, which are frozen from outside.
        every_n_steps: measurements are at multiples of it.

    Attributes:
        pre_spike: None until frozen.
        post_spike: None until frozen.

    Raises:
        ValueError: a reference is none of these or named twice, there is none, or ``every_n_steps`` is below 1.
    """

    def __init__(self, references: Sequence[str], every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if not references or len(set(references)) < len(references):
            raise ValueError(f"references must be at least one, and each once, got {list(references)}")
        self.names = tuple(references)
        self.every_n_steps = every_n_steps
        self.pre_spike: EigenbasisSnapshot | None = None
        self.post_spike: EigenbasisSnapshot | None = None
        self._lags = {
            reference: _lag(reference) for reference in references if reference not in (PRE_SPIKE, POST_SPIKE)
        }
        self._lagged: dict[int, EigenbasisSnapshot] = {}

    def measures_at(self, step: int) -> bool:
        """Whether this is a step to measure at."""
        return step % self.every_n_steps == 0

    def needs(self, step: int) -> bool:
        """Whether a later measurement goes back to the state after this step."""
        return any(self.measures_at(step + lag) for lag in self._lags.values())

    def keep(self, snapshot: EigenbasisSnapshot) -> None:
        """Keeps a snapshot that :meth:`needs` asked for."""
        self._lagged[snapshot.step] = snapshot

    def at(self, step: int) -> dict[str, EigenbasisSnapshot]:
        """The references there are for a measurement after this step, in the order in which they were named."""
        found: dict[str, EigenbasisSnapshot | None] = {PRE_SPIKE: self.pre_spike, POST_SPIKE: self.post_spike}
        found |= {reference: self._lagged.get(step - lag) for reference, lag in self._lags.items()}
        return {reference: snapshot for reference in self.names if (snapshot := found[reference]) is not None}

    def forget(self, step: int) -> None:
        """Drops what no measurement after this step goes back to."""
        self._lagged = {
            kept: snapshot
            for kept, snapshot in self._lagged.items()
            if any(kept + lag > step and self.measures_at(kept + lag) for lag in self._lags.values())
        }

    def state_dict(self) -> dict[str, Any]:
        """All snapshots, as plain containers of tensors."""
        return {
            PRE_SPIKE: _plain(self.pre_spike),
            POST_SPIKE: _plain(self.post_spike),
            "lagged": [_plain(snapshot) for snapshot in self._lagged.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any], devices: Mapping[Side, torch.device]) -> None:
        """Takes snapshots over, each basis to its device.

        Args:
            state: of another keeper.
            devices: of the sides that are tracked; bases of others are left out.
        """
        self.pre_spike = _snapshot(state[PRE_SPIKE], devices)
        self.post_spike = _snapshot(state[POST_SPIKE], devices)
        loaded = [_snapshot(plain, devices) for plain in state["lagged"]]
        self._lagged = {snapshot.step: snapshot for snapshot in loaded if snapshot is not None}


def _lag(reference: str) -> int:
    if reference == _PREVIOUS:
        return 1
    word, _, number = reference.partition(":")
    if word != "lag" or not number.isdecimal() or int(number) < 1:
        raise ValueError(
            f"references must be {_PREVIOUS!r}, 'lag:n' with n >= 1, {PRE_SPIKE!r} or {POST_SPIKE!r}, got {reference!r}"
        )
    return int(number)


def _plain(snapshot: EigenbasisSnapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    return {"step": snapshot.step, "bases": {side: basis._asdict() for side, basis in snapshot.bases.items()}}


def _snapshot(plain: Mapping[str, Any] | None, devices: Mapping[Side, torch.device]) -> EigenbasisSnapshot | None:
    if plain is None:
        return None
    bases = {
        side: Eigenbasis(**{name: tensor.to(devices[side]) for name, tensor in basis.items()})
        for side, basis in plain["bases"].items()
        if side in devices
    }
    return EigenbasisSnapshot(plain["step"], bases)
