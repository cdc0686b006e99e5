"""Benchmark of preconditioned optimizers on DeiT-Small, and the overhead of monitoring their eigenbases.

python benchmarks/eigenbasis.py              # CPU, and CUDA where there is one
python benchmarks/eigenbasis.py --rounds 5   # steadier medians
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import SimpleProfiler
from timing import machine, medians, ratio_table
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from eigenscope.callbacks import EigenbasisRotation
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.nn import DeiT
from eigenscope.optim import REKLS, SOAP, Muon, SplitOptimizer
from eigenscope.text import text_table

STEPS = 20
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Muon": Muon,
    "SOAP": SOAP,
    "REKLS": REKLS,
}


def optimizer_steps(rounds: int, device: str) -> None:
    """Steps of each optimizer on the matrices that a split of DeiT-Small gives it."""
    split = SplitOptimizer(DeiT().named_parameters(), partial(SOAP, lr=1e-3), partial(torch.optim.AdamW, lr=1e-3))
    shapes = [route.shape for route in split.routes if route.optimizer == "SOAP"]
    rows = {name: _stepping(make, shapes, device) for name, make in OPTIMIZERS.items()}
    count = sum(torch.Size(shape).numel() for shape in shapes)
    print(f"\nOne step on DeiT-Small's {len(shapes)} hidden matrices, {count:,} numbers, {device}, median of {rounds}")
    print(ratio_table(medians(rows, rounds, device), "optimizer", over="AdamW"))


def _stepping(make: Callable[..., Optimizer], shapes: list[torch.Size], device: str) -> Callable[[], Any]:
    generator = torch.Generator(device).manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator, device=device)) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=generator, device=device)
    return make(matrices, lr=1e-3).step


def watching(batch: int, device: str) -> None:
    """Training steps of DeiT-Small with the 12 attention outputs, 384×384, under SOAP and four of them monitored."""
    rows, base = [], 0.0
    watch = partial(EigenbasisRotation, ["blocks.[0-3].attention.projection.weight"], every_n_steps=10)
    for name, callbacks in {
        "not monitored": [],
        "4 monitored every 10 steps": [watch()],
        "the same, with a replica": [watch(replica_precision="high", emulate=device == "cpu")],
    }.items():
        profiler, held = _fit(batch, device, callbacks)
        durations = profiler.recorded_durations
        total = sum(durations["run_training_epoch"])
        hooks = sum(sum(times) for action, times in durations.items() if "EigenbasisRotation" in action)
        base = base or total
        rows.append([name, *(f"{1e3 * t / STEPS:.1f}" for t in (total, hooks)), f"{hooks / (total - hooks):.1%}"])
        rows[-1] += [f"{total / base:.3f}×", f"{held / 2**20:.1f}"]
    print(f"\n{STEPS} training steps of DeiT-Small, batch {batch}, {device}, fp32")
    print(text_table(["run", "ms/step", "callback ms/step", "of the rest", "ratio", "MiB held"], rows))


def _fit(batch: int, device: str, callbacks: list[EigenbasisRotation]) -> tuple[SimpleProfiler, int]:
    torch.manual_seed(0)

    def split(named: Any) -> SplitOptimizer:
        adamw = partial(torch.optim.AdamW, lr=1e-3)
        return SplitOptimizer(named, partial(SOAP, lr=1e-3, use_kl_shampoo=True), adamw, max_side=384)

    images = torch.rand(batch, 3, 32, 32)
    profiler = SimpleProfiler()
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        max_epochs=1,
        logger=False,
        callbacks=list(callbacks),
        profiler=profiler,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader([(images, torch.arange(batch) % 100)] * STEPS, batch_size=None)
    trainer.fit(ImageClassificationModule(DeiT(), split), loader)
    states = [callback.state_dict() for callback in callbacks]
    return profiler, sum(leaf.nbytes for leaf in tree_leaves(states) if isinstance(leaf, Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # Lightning's advice on loaders
    print(machine())
    watching(64, "cpu")
    optimizer_steps(options.rounds, "cpu")
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        watching(256, "cuda")
        optimizer_steps(options.rounds, "cuda")


if __name__ == "__main__":
    main()
