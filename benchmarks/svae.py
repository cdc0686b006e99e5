"""What CV discipline costs: a training step of the Freckles regime with and without the CV term.

python benchmarks/svae.py              # CPU, and CUDA where there is one
python benchmarks/svae.py --rounds 15  # steadier medians
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import machine, medians, ratio_table

from eigenscope.geometry import cv_loss, expected_cv, volume_cv
from eigenscope.nn import PatchSVAE
from eigenscope.noise import draw_noise


def training_step(images: torch.Tensor, *, cv: bool, measure: bool = False, **options: Any) -> Callable[[], object]:
    """As in training: of a step's matrices 64 with 64 simplices each in the loss, 16 with 200 when it is measured."""
    torch.manual_seed(0)
    net = PatchSVAE(num_points=48, dim=4, patch_size=4, hidden=384, **options).to(images.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)

    def some(points: torch.Tensor, count: int) -> torch.Tensor:
        return points[torch.randperm(len(points), generator=generator)[:count].to(points.device)]

    def step() -> None:
        optimizer.zero_grad()
        reconstructions, code = net(images)
        loss = (reconstructions - images).square().mean()
        points = code.points.flatten(0, 1)
        if measure:
            volume_cv(some(points.detach(), 16), 200, generator)
        if cv:
            loss = loss + 20 * cv_loss(some(points, 64), expected_cv(4), 64, generator)
        loss.backward()
        optimizer.step()

    return step


def training_steps(batch: int, rounds: int, device: str) -> None:
    types = torch.arange(batch, device=device) % 16
    images = draw_noise(types, seed=0, epoch=0, samples=types, image_size=64, clamp=4.0)
    rows = {
        "without the CV term": training_step(images, cv=False),
        "with it": training_step(images, cv=True),
        "with it, and measured in every step": training_step(images, cv=True, measure=True),
        "without it, Gram matrix in fp32": training_step(images, cv=False, gram_precision="fp32"),
        "without it or cross-attention": training_step(images, cv=False, num_cross=0),
    }
    times = medians(rows, rounds, device)
    print(f"\nTraining step of PatchSVAE, Freckles regime, {batch} images of 64², {device}, fp32, median of {rounds}")
    print(ratio_table(times, "step", over="without the CV term"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(machine())
    training_steps(8, options.rounds, "cpu")
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        for batch in (64, 256):
            training_steps(batch, 4 * options.rounds, "cuda")


if __name__ == "__main__":
    main()
