"""Benchmark of SVD taps: a training step of DeiT-Small with and without them, and forms of the decomposition.

    python benchmarks/taps.py              # CPU, and CUDA where there is one
    python benchmarks/taps.py --rounds 9   # steadier medians

Rounds alternate between the rows of a table, so that a machine that slows down slows all of them.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import machine, medians, ratio_table

from eigenscope.linalg import fix_signs, gram_svd
from eigenscope.nn import DeiT, TapConfig
from eigenscope.precision import has_bf16

TAPS = TapConfig(layers=(3, 6, 9, 12), rank=32)


def training_step(net: DeiT, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def training_steps(batch: int, rounds: int, device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 100, (batch,), device=device)
    arms = {"without taps": None, "zeros": TapConfig(TAPS.layers, TAPS.rank, "zeros"), "SVD taps": TAPS}
    rows = {name: training_step(DeiT(taps=taps).to(device), images, labels, dtype) for name, taps in arms.items()}
    times = medians(rows, rounds, device)
    precision = str(dtype).removeprefix("torch.")
    print(f"\nTraining step of DeiT-Small, batch {batch}, {device}, {precision}, median of {rounds}")
    print(ratio_table(times, "arm", over="without taps"))


def per_tap_fp64(tokens: torch.Tensor) -> object:
    """The form reported: tap by tap, Gram matrix and eigenvectors in fp64, U as well."""
    for tap in tokens.double():
        squares, V = torch.linalg.eigh(tap.mT @ tap)
        S = squares.flip(-1).clamp_min(1e-12).sqrt()
        V = V.flip(-1)
        _ = (tap @ V) / S[..., None, :], S, V.mT
    return None


@torch.no_grad()
def decompositions(batch: int, rounds: int, device: str) -> None:
    tokens = torch.randn(4, batch, 64, 32, device=device)
    rows = {
        "stacked gram_svd, right vectors (ours)": lambda: gram_svd(tokens),
        "... and fixed signs": lambda: fix_signs(gram_svd(tokens).Vh),
        "gram_svd tap by tap": lambda: [gram_svd(tap) for tap in tokens],
        "gram_svd in fp64": lambda: gram_svd(tokens, compute_dtype=torch.float64),
        "per tap, fp64, U as well (as reported)": lambda: per_tap_fp64(tokens),
        "torch.linalg.svd, stacked": lambda: torch.linalg.svd(tokens, full_matrices=False),
    }
    times = medians(rows, rounds, device)
    print(f"\nDecomposition of 4 taps × {batch} token matrices 64×32, {device}, median of {rounds}")
    print(ratio_table(times, "form", over="stacked gram_svd, right vectors (ours)"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    decompositions(256, 4 * options.rounds, "cpu")
    training_steps(64, options.rounds, "cpu", torch.float32)
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        decompositions(256, 4 * options.rounds, "cuda")
        dtype = torch.bfloat16 if has_bf16("cuda") else torch.float32
        for batch in (64, 256):
            training_steps(batch, 4 * options.rounds, "cuda", dtype)


if __name__ == "__main__":
    main()
