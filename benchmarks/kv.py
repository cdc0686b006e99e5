"""Benchmark of KV-cache compression, table by table.

    python benchmarks/kv.py                # every table
    python benchmarks/kv.py svd            # only the decompositions
    python benchmarks/kv.py --rounds 41    # steadier medians

Rounds alternate between the rows of a table, so that a machine that slows down slows all of them.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from scipy.sparse.linalg import svds
from timing import machine, medians

from eigenscope.linalg import randomized_svd
from eigenscope.linalg.randomized_svd import Method
from eigenscope.text import text_table

HEADS, CHANNELS, OVERSAMPLING, ITERATIONS = 8, 128, 5, 2
SPECTRA = ("rank k", "randn", "i^-1/2", "1/i", "2^(-i/4)")

METHODS: tuple[Method, ...] = ("reference", "gram", "subspace", "auto")

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def keys_of_spectrum(name: str, tokens: int, rank: int) -> torch.Tensor:
    """(HEADS, tokens, CHANNELS) in fp32, singular values as named; "rank k" has noise of 1 % on every entry."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(HEADS, tokens, CHANNELS, generator=generator, dtype=torch.float64)
    if name == "randn":
        return noise.float()
    if name == "rank k":
        left = torch.randn(HEADS, tokens, rank, generator=generator, dtype=torch.float64)
        right = torch.randn(HEADS, rank, CHANNELS, generator=generator, dtype=torch.float64)
        return (left @ right / rank**0.5 + 0.01 * noise).float()
    i = torch.arange(1, CHANNELS + 1, dtype=torch.float64)
    values = {"i^-1/2": i**-0.5, "1/i": 1 / i, "2^(-i/4)": 2 ** (-i / 4)}[name]
    U, _, Vh = torch.linalg.svd(noise, full_matrices=False)
    return (U * values @ Vh).float()


def loop_of_svds(M: torch.Tensor, rank: int) -> Factors:
    parts = [torch.linalg.svd(head, full_matrices=False) for head in M]
    U, S, Vh = (torch.stack(factor) for factor in zip(*parts, strict=True))
    return U[..., :rank], S[..., :rank], Vh[..., :rank, :]


def batched_svd(M: torch.Tensor, rank: int) -> Factors:
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[..., :rank], S[..., :rank], Vh[..., :rank, :]


def lowrank(M: torch.Tensor, rank: int) -> Factors:
    U, S, V = torch.svd_lowrank(M, q=rank + OVERSAMPLING, niter=ITERATIONS)
    return U[..., :rank], S[..., :rank], V[..., :rank].mT


def scipy_svds(M: torch.Tensor, rank: int) -> Factors:
    parts = [svds(head.numpy(), k=rank) for head in M]
    U, S, Vh = (torch.stack([torch.from_numpy(p.copy()) for p in factor]) for factor in zip(*parts, strict=True))
    return U, S, Vh


def ours(M: torch.Tensor, rank: int, method: Method) -> Factors:
    return randomized_svd(M, rank, oversampling=OVERSAMPLING, power_iterations=ITERATIONS, method=method)


SVDS: dict[str, Callable[[torch.Tensor, int], Factors]] = {
    "loop of torch.linalg.svd": loop_of_svds,
    "torch.linalg.svd, batched": batched_svd,
    "torch.svd_lowrank": lowrank,
    "loop of scipy svds": scipy_svds,
    **{f"randomized_svd {method}": partial(ours, method=method) for method in METHODS},
}


def error_over_optimum(M: torch.Tensor, factors: Factors) -> float:
    """Frobenius error over the least possible at that rank, minus one, all heads together, in fp64."""
    U, S, Vh = (factor.double() for factor in factors)
    least = torch.linalg.svdvals(M.double())[..., S.shape[-1] :].norm()
    return float((M.double() - U * S[..., None, :] @ Vh).norm() / least - 1)


@torch.no_grad()
def svd_tables(rounds: int) -> None:
    for tokens in (512, 1024):
        for rank in (16, 32):
            inputs = {name: keys_of_spectrum(name, tokens, rank) for name in SPECTRA}
            # Of these, only svds takes another time on another spectrum.
            times = medians({name: partial(svd, inputs["randn"], rank) for name, svd in SVDS.items()}, rounds, "cpu")
            base = times["randomized_svd reference"]
            rows = [
                [name, f"{1e3 * times[name]:.2f}", f"{base / times[name]:.2f}×"]
                + [f"{100 * error_over_optimum(M, svd(M, rank)):+.3f} %" for M in inputs.values()]
                for name, svd in SVDS.items()
            ]
            print(
                f"\nRank {rank} of {HEADS}×{tokens}×{CHANNELS}, median of {rounds}; error over the optimum by spectrum"
            )
            print(text_table(["method", "ms", "reference's time over it", *SPECTRA], rows))


TABLES: dict[str, Callable[[int], None]] = {"svd": svd_tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"any of {', '.join(TABLES)}; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table named {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    print(machine())
    for name in options.tables or TABLES:
        TABLES[name](options.rounds)


if __name__ == "__main__":
    main()
