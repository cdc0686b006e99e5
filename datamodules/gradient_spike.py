"""Gradient-spike data module: random gradients, one of them far larger than the rest."""

import math
from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from eigenscope.datamodules.loaders import fingerprint


class SpikedGradients:
    """The gradients of a run in their order, each (1, rows, columns) float32: standard normal, one of them scaled.

    They are drawn in turn from one generator, so that a run begins like every longer one of its seed, and anew
    whenever they are iterated over. Being no ``DataLoader`` they have no worker processes, and Lightning neither
    shuffles them nor deals them out to ranks: every rank replays them all.

    Args:
        shape: (rows, columns).
        steps: how many.
        spike_step: which one is scaled, from 0.
        spike_scale: its factor.
        seed: of the generator.
    """

    def __init__(self, shape: tuple[int, int], steps: int, spike_step: int, spike_scale: float, seed: int) -> None:
        self.shape = shape
        self.steps = steps
        self.spike_step = spike_step
        self.spike_scale = spike_scale
        self.seed = seed
        self._start = 0

    def __len__(self) -> int:
        """Number of gradients."""
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        """Draws them."""
        start, self._start = self._start, 0
        generator = torch.Generator().manual_seed(self.seed)
        for step in range(self.steps):
            gradient = torch.randn(1, *self.shape, generator=generator, dtype=torch.float32)
            if step >= start:
                yield gradient * self.spike_scale if step == self.spike_step else gradient

    def state_dict(self) -> dict[str, int]:
        """The start; how far a run has come is the trainer's count, as for ``ResumableLoader``."""
        return {"batches": 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next iteration draw a number of gradients and leave them out."""
        self._start = state_dict["batches"]


class GradientSpikeDataModule(LightningDataModule):
    """Gradients (1, rows, columns) of independent standard normal entries, one of them scaled up: a loss spike.

    For :class:`~eigenscope.lightning_modules.GradientReplayModule`. One epoch is one run; what there is of it depends
    on the seed given here, not on the seed of the run, nor on ranks.

    Args:
        rows: m of the weight.
        columns: n of the weight.
        steps: gradients in an epoch.
        spike_step: which of them is scaled, from 0: the state after ``spike_step`` steps has not seen it.
        spike_scale: its factor; 1 leaves it as it is.
        seed: of the gradients.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        rows: int = 128,
        columns: int = 64,
        steps: int = 200,
        spike_step: int = 50,
        spike_scale: float = 1000.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("rows", rows), ("columns", columns), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= spike_step < steps:
            raise ValueError(f"spike_step must be in [0, steps), which is [0, {steps}), got {spike_step}")
        if not math.isfinite(spike_scale):
            raise ValueError(f"spike_scale must be finite, got {spike_scale}")
        self.gradients = SpikedGradients((rows, columns), steps, spike_step, spike_scale, seed)

    @property
    def gradient_shape(self) -> tuple[int, int]:
        """(rows, columns), which the weight must have."""
        return self.gradients.shape

    def fingerprint(self) -> dict[str, str]:
        """Of the parameters and the first gradients."""
        run = self.gradients
        given = [run.steps, run.spike_step, run.spike_scale, run.seed]
        first = SpikedGradients(run.shape, min(4, run.steps), run.spike_step, run.spike_scale, run.seed)
        return {"train": fingerprint(run.steps, given, *first)}

    def train_dataloader(self) -> SpikedGradients:
        """The gradients in their order."""
        return self.gradients

    def __str__(self) -> str:
        """What it holds; Lightning's own knows of no loader but ``DataLoader``, and asks for one to describe it."""
        rows, columns = self.gradient_shape
        return f"{len(self.gradients)} gradients of {rows}×{columns}"
