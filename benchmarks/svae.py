"""Benchmark of the CV loss term: training steps of the Freckles regime under Lightning, with and without callbacks.

    python benchmarks/svae.py              # CPU, and CUDA where there is one
    python benchmarks/svae.py --rounds 9   # steadier medians

Rounds, each a short fit, alternate between the rows of the table.
"""

import argparse
import logging
import statistics
import time
import warnings
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from timing import machine, ratio_table
from torch import Tensor
from torch.utils.data import DataLoader

from eigenscope.callbacks import CVLossSchedule, FiniteGuard
from eigenscope.geometry import CVPolicy, Phase
from eigenscope.lightning_modules import SpectralAutoencoderModule
from eigenscope.nn import PatchSVAE
from eigenscope.noise import draw_noise

STEPS, WARM_UP = 9, 3  # of a round, and those of them that are not counted


class StepSeconds(Callback):
    """Notes when batches end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        ends = self.ends[WARM_UP - 1 :]
        return [after - before for before, after in pairwise(ends)]


def discipline(measure_every: int) -> CVLossSchedule:
    return CVLossSchedule({"M": CVPolicy(phases=[Phase(20.0)])}, measure_every=measure_every)


def steps(images: Tensor, device: str, callbacks: list[Callback], **options: Any) -> list[float]:
    torch.manual_seed(0)
    net = PatchSVAE(num_points=48, dim=4, patch_size=4, hidden=384, **options)
    module = SpectralAutoencoderModule(net, lambda named: torch.optim.Adam(named, lr=1e-4))
    clock = StepSeconds()
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        max_steps=STEPS,
        logger=False,
        callbacks=[*callbacks, clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([(images, torch.zeros(len(images)))] * STEPS, batch_size=None))
    return clock.steps()


def training_steps(batch: int, rounds: int, device: str) -> None:
    types = torch.arange(batch) % 16
    images = draw_noise(types, seed=0, epoch=0, samples=types, image_size=64, clamp=4.0)
    rows: dict[str, tuple[list[Callback], dict[str, Any]]] = {
        "without the CV term": ([FiniteGuard()], {}),
        "with it, measured every 50 batches": ([FiniteGuard(), discipline(50)], {}),
        "with it, measured in every batch": ([FiniteGuard(), discipline(1)], {}),
        "without it, nor FiniteGuard": ([], {}),
        "without it, Gram matrix in fp32": ([FiniteGuard()], {"gram_precision": "fp32"}),
        "without it or cross-attention": ([FiniteGuard()], {"num_cross": 0}),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, (callbacks, options) in rows.items():
            times[name] += steps(images, device, callbacks, **options)
    print(f"\nTraining step of PatchSVAE, Freckles regime, {batch} images of 64², {device}, fp32, median of {rounds}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(ratio_table(medians, "step", over="without the CV term"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # Lightning's advice on loaders, once per fit
    print(machine())
    training_steps(8, options.rounds, "cpu")
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        for batch in (64, 256):
            training_steps(batch, options.rounds, "cuda")


if __name__ == "__main__":
    main()
