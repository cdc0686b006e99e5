"""Benchmark of keyed noise: each type beside an unkeyed draw of the same distribution, and loaders of 1 and 2 workers.

    python benchmarks/noise.py              # CPU, and CUDA where there is one
    python benchmarks/noise.py --threads 1  # as a loader's worker draws
    python benchmarks/noise.py --rounds 25  # steadier medians

Rounds alternate between the columns of a row, so that a machine that slows down slows all of them. The unkeyed draws
take their numbers from a ``torch.Generator`` for the whole batch at once. "bare" is ``torch.randn``, or ``torch.rand``
for distributions without normal numbers, of as many numbers as the images have.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence

import torch
from timing import machine, medians
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eigenscope.noise import NOISE_TYPES, draw_noise
from eigenscope.text import text_table


class _Unkeyed:
    """The distributions in plain torch, n images of side s at once."""

    def __init__(self, n: int, s: int, device: str) -> None:
        self.shape = (n, 3, s, s)
        self.device = device
        self.generator = torch.Generator(device).manual_seed(0)

    def empty(self) -> Tensor:
        return torch.empty(self.shape, device=self.device)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape or self.shape, device=self.device, generator=self.generator)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape or self.shape, device=self.device, generator=self.generator)

    def parameter(self) -> Tensor:
        return self.rand(self.shape[0], 1, 1, 1)

    def sides(self) -> Tensor:
        return torch.randint(2, 16, (self.shape[0], 1), device=self.device, generator=self.generator)

    def gaussian(self) -> Tensor:
        return self.randn()

    def uniform(self) -> Tensor:
        return self.empty().uniform_(-1, 1, generator=self.generator)

    def uniform_scaled(self) -> Tensor:
        return self.empty().uniform_(-2, 2, generator=self.generator)

    def poisson(self) -> Tensor:
        rate = self.parameter() * 19.5 + 0.5
        return torch.poisson(rate.expand(self.shape), generator=self.generator).div_(rate).sub_(1)

    def coloured(self, exponent: int, n: int, height: int, width: int) -> Tensor:
        rows, columns = (
            f(k, 1 / k, device=self.device) for f, k in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width))
        )
        amplitude = (rows[:, None].square() + columns.square()).pow(-exponent / 2)
        amplitude[0, 0] = 0
        fields: Tensor = torch.fft.irfft2(
            torch.fft.rfft2(self.randn(n, 3, height, width)).mul_(amplitude), s=(height, width)
        )
        # Tensor.std would take twice as long as everything else here on CPUs.
        return fields.div_(fields.square().mean((-2, -1), keepdim=True).sqrt_())

    def pink(self) -> Tensor:
        return self.coloured(1, self.shape[0], *self.shape[2:])

    def brown(self) -> Tensor:
        return self.coloured(2, self.shape[0], *self.shape[2:])

    def signs(self, *shape: int) -> Tensor:
        return (
            torch.empty(shape or self.shape, device=self.device)
            .bernoulli_(0.5, generator=self.generator)
            .mul_(2)
            .sub_(1)
        )

    def salt_pepper(self) -> Tensor:
        return self.randn().mul_(0.1).add_(self.signs(), alpha=2)

    def sparse(self) -> Tensor:
        return self.randn().mul_(3).mul_(self.empty().bernoulli_(0.1, generator=self.generator))

    def block(self) -> Tensor:
        n, _, s, _ = self.shape
        cells = -(-s // 2)
        cell = torch.arange(s, device=self.device) // self.sides()
        pixel = (cell[:, :, None] * cells + cell[:, None, :]).view(n, 1, s * s).expand(n, 3, s * s)
        return self.randn(n, 3, cells * cells).gather(2, pixel).view(self.shape)

    def gradient(self) -> Tensor:
        angle = self.parameter() * (2 * math.pi)
        x = torch.linspace(-2, 2, self.shape[-1], device=self.device)
        return self.randn().mul_(0.5).add_(x * angle.cos() + x[:, None] * angle.sin())

    def checkerboard(self) -> Tensor:
        side = self.sides()
        pixel = torch.arange(self.shape[-1], device=self.device)
        odd = [(pixel + (self.rand(len(side), 1) * (2 * side)).long()) // side % 2 for _ in range(2)]
        board = 1 - 2 * (odd[0][:, None, :, None] ^ odd[1][:, None, None, :])
        return self.randn().mul_(0.3).add_(board)

    def mixed(self) -> Tensor:
        weight = self.parameter() * 0.6 + 0.2
        return self.randn().mul_(weight).add_(self.uniform().mul_(1 - weight))

    def structural(self) -> Tensor:
        n, _, s, _ = self.shape
        top, bottom = s // 2, s - s // 2
        images = self.empty()
        images[:, :, :top, :top] = self.randn(n, 3, top, top)
        images[:, :, :top, top:] = self.rand(n, 3, top, bottom).mul_(2).sub_(1)
        images[:, :, top:, :top] = self.coloured(1, n, bottom, top).mul_(0.5)
        images[:, :, top:, top:] = self.signs(n, 3, bottom, bottom)
        return images

    def cauchy(self) -> Tensor:
        return self.empty().cauchy_(generator=self.generator)

    def exponential(self) -> Tensor:
        return self.empty().exponential_(generator=self.generator).sub_(1)

    def laplace(self) -> Tensor:
        u = self.uniform()
        return u.abs().neg_().log1p_().neg_().copysign_(u)


WITHOUT_NORMALS = ("uniform", "uniform_scaled", "poisson", "cauchy", "exponential", "laplace")


def laws(batch: int, image_size: int, rounds: int, device: str) -> None:
    unkeyed = _Unkeyed(batch, image_size, device)
    samples = torch.arange(batch, device=device)
    table = []
    for noise_type, name in enumerate(NOISE_TYPES):
        types = torch.full((batch,), noise_type)

        def keyed(types: Tensor = types) -> Tensor:
            return draw_noise(types, seed=0, epoch=0, samples=samples, image_size=image_size)

        bare = unkeyed.rand if name in WITHOUT_NORMALS else unkeyed.randn
        runs = {"keyed": keyed, "unkeyed": getattr(unkeyed, name), "bare": bare}
        ours, theirs, numbers = (1e6 * t / batch for t in medians(runs, rounds, device).values())
        table.append([name, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}×", f"{numbers:.2f}"])
    print(f"\nNoise images of {image_size}², batch {batch}, {device}, µs per image, median of {rounds}")
    print(text_table(["type", "keyed (ours)", "unkeyed", "ratio", "bare"], table))


class Noise(Dataset[Tensor]):
    """All types in turn, whole batches at once."""

    def __init__(self, size: int, image_size: int) -> None:
        self.size = size
        self.image_size = image_size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, keys: Sequence[int]) -> Tensor:
        samples = torch.tensor(keys)
        types = samples % len(NOISE_TYPES)
        return draw_noise(types, seed=0, epoch=0, samples=samples, image_size=self.image_size)


def images_per_second(batch: int, batches: int, image_size: int, workers: int) -> float:
    loader = DataLoader(
        Noise(batch * batches, image_size),
        batch,
        num_workers=workers,
        collate_fn=lambda drawn: drawn,
        prefetch_factor=2,
    )
    arrivals = [time.perf_counter() for _ in loader]
    first = 2 * workers  # by then the workers have started
    return batch * (len(arrivals) - 1 - first) / (arrivals[-1] - arrivals[first])


def loaders(batch: int, image_size: int, rounds: int) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, measured in rates.items():
            measured.append(images_per_second(batch, 120, image_size, workers))
    one, two = (statistics.median(measured) for measured in rates.values())
    print(f"\nLoader on all types, {image_size}², batch {batch}, median of {rounds}")
    print(
        text_table(
            ["workers", "images/s", "ratio"], [["1", f"{one:.0f}", ""], ["2", f"{two:.0f}", f"{two / one:.2f}×"]]
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    laws(options.batch, options.image_size, options.rounds, "cpu")
    loaders(64, options.image_size, -(-options.rounds // 3))
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        laws(options.batch, options.image_size, options.rounds, "cuda")


if __name__ == "__main__":
    main()
