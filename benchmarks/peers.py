"""Comparison of four patch autoencoders: parameters, time per step, and errors by noise type in one space.

    python benchmarks/peers.py                                # without the arm that needs a container
    python benchmarks/peers.py --container batteries.safetensors --steps 500

All are trained on the same images, 16 unclamped types at 32², each by its own loss: PatchSVAE and the control without
a bottleneck on the squared error of pixels, the variational ones on their own. Errors are compared where magnitude does
not rule: as fractions of variance unexplained of asinh(x / s), s the median |x| of the target's patch.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from timing import machine
from torch import Tensor, nn

from eigenscope.nn import ImplantedVAE, LinearReadoutAutoencoder, PatchSVAE, SimplexVAE
from eigenscope.nn.autoencoders.companding import compand
from eigenscope.nn.autoencoders.patches import unfold_patches
from eigenscope.nn.autoencoders.reconstruction_errors import reconstruction_errors
from eigenscope.nn.autoencoders.variational import free_bits, kl_weight
from eigenscope.noise import NOISE_TYPES, draw_noise
from eigenscope.text import text_table

SIZES = {"num_points": 32, "dim": 16, "patch_size": 4, "hidden": 128, "depth": 2}


def images(seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    samples = torch.arange(first, first + count)
    return draw_noise(samples % 16, seed=seed, epoch=0, samples=samples, image_size=32), samples % 16


def loss_of(net: nn.Module, batch: Tensor, step: int) -> Tensor:
    output, code = net(batch)
    if isinstance(net, SimplexVAE):
        loss = reconstruction_errors(output, code.companded, "huber").mean()
        return loss + kl_weight(step, 0.01, 300) * free_bits(code.kl, 0.05).mean()
    return (output - batch).square().mean()


@torch.no_grad()
def unexplained(net: nn.Module) -> dict[str, float]:
    """By type, of 40 images each that were not trained on."""
    held_out, types = images(1, 0, 640)
    targets, log_scale = compand(unfold_patches(held_out, SIZES["patch_size"]))
    net.eval()
    if isinstance(net, SimplexVAE):
        companded = net(held_out, sample=False)[0]
    else:
        patches = unfold_patches(net(held_out)[0], SIZES["patch_size"])
        companded = (patches / log_scale.exp()[..., None]).asinh()
    errors = {}
    for label, name in enumerate(NOISE_TYPES):
        u, v = targets[types == label].double(), companded[types == label].double()
        errors[name] = float((v - u).square().sum() / (u - u.mean()).square().sum())
    return errors


def trained(net: nn.Module, steps: int) -> float:
    """Trains, and returns the median seconds of a step."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    seconds = []
    for step in range(steps):
        batch, _ = images(0, 16 * step, 16)
        started = time.perf_counter()
        optimizer.zero_grad()
        loss_of(net, batch, step).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--container", type=Path, default=None, help="of trained batteries, for the implanted arm")
    options = parser.parse_args()
    print(machine())
    arms = {
        "PatchSVAE": lambda: PatchSVAE(**SIZES),
        "round 5": lambda: LinearReadoutAutoencoder(**SIZES, bottleneck=False),
        "SimplexVAE": lambda: SimplexVAE(**SIZES, bottleneck=128),
    }
    if options.container is not None:
        arms["implanted"] = lambda: ImplantedVAE(str(options.container), implant_points=16, **SIZES, bottleneck=128)
    columns, head = {}, {}
    for name, make in arms.items():
        torch.manual_seed(0)
        net = make()
        seconds = trained(net, options.steps)
        head[name] = [f"{sum(p.numel() for p in net.parameters()):,}", f"{1e3 * seconds:.1f}"]
        columns[name] = unexplained(net)
    print(f"\n{options.steps} steps of 16 images; fraction of variance unexplained in companded space")
    rows = [["parameters", *(head[name][0] for name in arms)], ["ms a step", *(head[name][1] for name in arms)]]
    rows += [[kind, *(f"{columns[name][kind]:.3f}" for name in arms)] for kind in NOISE_TYPES]
    print(text_table(["", *arms], rows))


if __name__ == "__main__":
    main()
