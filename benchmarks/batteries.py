"""Benchmark of batteries (hundreds of miniature autoencoders): stacked weights, a loop over modules, and torch.func.

    python benchmarks/batteries.py             # CPU, and CUDA where there is one
    python benchmarks/batteries.py --rounds 9  # steadier medians

A step is forward, sum of the batteries' mean squared errors, backward and fused Adam, on one image of 32² (64 patches)
for each battery. In the second table each K is measured in a process of its own, so that its peak memory is its own;
what the libraries and one battery take is not in it.
"""

import argparse
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from timing import machine, medians
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from eigenscope.nn import PatchSVAE
from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.noise import draw_noise
from eigenscope.text import text_table

_MINIATURE: dict[str, Any] = {"num_points": 32, "dim": 4, "patch_size": 4, "hidden": 64, "depth": 1}
_SIZES = (1, 4, 16, 64, 128, 256, 512)
_OURS = "BatteryArray (ours)"


def noise(count: int, device: str) -> Tensor:
    """An image for each battery, (K, 1, 3, 32, 32)."""
    samples = torch.arange(count, device=device)
    return draw_noise(samples % 16, seed=0, epoch=0, samples=samples, image_size=32, clamp=4.0)[:, None]


def stacked_step(count: int, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    array = BatteryArray(count, **_MINIATURE).to(device)
    optimizer = torch.optim.Adam(array.parameters(), lr=1e-4, fused=True)
    images = noise(count, device)

    def step() -> None:
        optimizer.zero_grad()
        reconstructions, _ = array(images)
        (reconstructions - images).square().mean((1, 2, 3, 4)).sum().backward()
        optimizer.step()

    return step


def looped_step(count: int, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    modules = nn.ModuleList(PatchSVAE(**_MINIATURE) for _ in range(count)).to(device)
    optimizer = torch.optim.Adam(modules.parameters(), lr=1e-4, fused=True)
    images = noise(count, device)

    def step() -> None:
        optimizer.zero_grad()
        for module, own in zip(modules, images, strict=True):
            (module(own)[0] - own).square().mean().backward()
        optimizer.step()

    return step


def vmapped_step(count: int, device: str) -> Callable[[], object]:
    """As in torch.func's tutorial on ensembles.

    On a CPU vmap loops over attention, which is still faster than the kernel that it batches (SDPBackend.MATH).
    """
    warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
    torch.manual_seed(0)
    modules = [PatchSVAE(**_MINIATURE).to(device) for _ in range(count)]
    parameters, _ = stack_module_state(modules)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-4, fused=True)
    images = noise(count, device)
    one = modules[0]

    def loss(weights: dict[str, Tensor], own: Tensor) -> Tensor:
        error: Tensor = functional_call(one, weights, (own,))[0] - own
        return error.square().mean()

    gradients = vmap(grad(loss))

    def step() -> None:
        for name, gradient in gradients(parameters, images).items():
            parameters[name].grad = gradient
        optimizer.step()

    return step


def peers(count: int, rounds: int, device: str) -> None:
    steps = {_OURS: stacked_step, "torch.func: vmap of grad": vmapped_step, "loop over PatchSVAE modules": looped_step}
    times = medians({name: make(count, device) for name, make in steps.items()}, rounds, device)
    rows = [
        [name, f"{1e3 * time:.1f}", f"{1e3 * time / count:.3f}", f"{time / times[_OURS]:.2f}×"]
        for name, time in times.items()
    ]
    print(f"\nTraining step of {count} batteries with 64 patches each, {device}, fp32, median of {rounds}")
    print(text_table(["step", "ms", "ms a battery", "ratio"], rows))


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at their highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kibibytes)


def cost(count: int, rounds: int, device: str, threads: int) -> tuple[float, int]:
    """Seconds of a step, and the bytes that batteries, optimizer and activations take at their highest."""
    torch.set_num_threads(threads)
    stacked_step(1, device)()  # what the libraries take for themselves
    before = torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")
    step = stacked_step(count, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    (time,) = medians({"": step}, rounds, device).values()
    highest = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return time, highest - before


def sizes(rounds: int, device: str) -> None:
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tasks = [(count, rounds, device, torch.get_num_threads()) for count in _SIZES]
        costs = pool.starmap(cost, tasks, chunksize=1)
    rows = [
        [str(count), f"{1e3 * time:.1f}", f"{1e3 * time / count:.3f}", f"{memory / 2**20:.0f}"]
        for count, (time, memory) in zip(_SIZES, costs, strict=True)
    ]
    print(f"\nThe same of K batteries at once, {device}, fp32, median of {rounds}")
    print(text_table(["K", "ms", "ms a battery", "peak MiB"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    peers(256, options.rounds, "cpu")
    sizes(options.rounds, "cpu")
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        peers(256, 4 * options.rounds, "cuda")
        sizes(4 * options.rounds, "cuda")


if __name__ == "__main__":
    main()
