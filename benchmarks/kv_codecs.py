"""Benchmark of KV codecs: error at equal memory beside the rate-distortion bound, and speed.

    python benchmarks/kv_codecs.py                # CPU, and the speed on CUDA where there is one
    python benchmarks/kv_codecs.py --rounds 41    # steadier medians

Errors are relative, ‖X − X̂‖ / ‖X‖, and means over three draws. Bits are of everything held; × is against 16 bits. The
bound is reverse water-filling with a free basis.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import machine, medians
from torch import Tensor

from eigenscope.kv import (
    Codec,
    Fitted,
    LowRankInt8,
    ScoreAwareCodec,
    TransformCodec,
    UniformInt,
    bits_per_element,
    rate_distortion_bound,
    relative_error,
)
from eigenscope.text import text_table

HEADS, TOKENS, CHANNELS, BLOCK, SEEDS = 8, 4096, 128, 512, 3
_i = torch.arange(1, CHANNELS + 1, dtype=torch.float64)
SPECTRA = {"keys": (_i + 3.2) ** -1.86, "values": (_i + 22.5) ** -2.30}
RANKS = {"keys": 16, "values": 32}  # of the reported pipeline
TIMES = (8.5, 12.0, 16.0)


def states(spectrum: Tensor, tokens: int, seed: int) -> Tensor:
    """Gaussian tokens (1, HEADS, tokens, CHANNELS) fp32 of that spectrum, along random directions for each head."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(HEADS, CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)).Q
    coefficients = torch.randn(1, HEADS, tokens, CHANNELS, generator=generator, dtype=torch.float64)
    return (coefficients * spectrum.sqrt() @ basis.mT).float()


def in_blocks(X: Tensor) -> Tensor:
    """(blocks, HEADS, BLOCK, CHANNELS)."""
    return X.unflatten(2, (-1, BLOCK)).squeeze(0).transpose(0, 1).contiguous()


def result(codec: Codec, X: Tensor, seen: Tensor) -> tuple[float, float]:
    """Error and bits an element of a codec that has learned from ``seen``."""
    fitted = codec.fit(seen)
    code = codec.encode(X, fitted)
    error = relative_error(X, codec.decode(code, fitted), dim=None)
    return float(error), bits_per_element(X.numel(), code, fitted)


def error_table(role: str) -> str:
    spectrum, channelwise = SPECTRA[role], "channel" if role == "keys" else "token"
    draws = [states(spectrum, TOKENS, seed) for seed in range(SEEDS)]
    runs: dict[str, Callable[[Tensor], tuple[float, float]]] = {
        f"reported pipeline, rank {RANKS[role]}": lambda X: result(LowRankInt8(RANKS[role]), in_blocks(X), in_blocks(X))
    }
    at_its_bytes = 16 / (16 * RANKS[role] / BLOCK + RANKS[role] / 16)
    for times in (at_its_bytes, *TIMES):
        codec = TransformCodec(bits_per_element=16 / times, tokens=TOKENS)
        runs[f"transform, {times:.1f}×"] = lambda X, codec=codec: result(codec, X, X)
        runs[f"… learned from the first block, {times:.1f}×"] = lambda X, codec=codec: result(codec, X, X[:, :, :BLOCK])
    for bits in (2, 4, 8):
        codec = UniformInt(bits, axis=channelwise, stretch=32 if bits == 2 else None)
        runs[f"integers of {bits} bits by {channelwise}"] = lambda X, codec=codec: result(codec, X.half(), X.half())
    rows = []
    for name, run in runs.items():
        error, bits = (sum(figures) / SEEDS for figures in zip(*map(run, draws), strict=True))
        bound = (rate_distortion_bound(spectrum, torch.tensor(bits)) / spectrum.sum()).sqrt()
        rows.append([name, f"{16 / bits:.2f}×", f"{bits:.2f}", f"{error:.3f}", f"{float(bound):.3f}"])
    return text_table([role, "×", "bits", "error", "bound"], rows)


def score_table() -> str:
    """Keys whose queries have another basis than they; errors on queries that no codec has seen."""
    rows = []
    keys = states(SPECTRA["keys"], TOKENS, 0)
    seen, unseen = states(SPECTRA["keys"], 2 * BLOCK, SEEDS).chunk(2, dim=2)  # of a basis of its own
    scores = unseen @ keys.mT
    for times in TIMES:
        for kind in (TransformCodec, ScoreAwareCodec):
            codec = kind(bits_per_element=16 / times, tokens=TOKENS)
            fitted = codec.fit(keys, queries=seen)
            decoded = codec.decode(codec.encode(keys, fitted), fitted)
            errors = [(decoded - keys).norm() / keys.norm()]
            errors.append((unseen @ decoded.mT - scores).norm() / scores.norm())
            rows.append([f"{kind.__name__}, {times:.1f}×", *(f"{float(error):.3f}" for error in errors)])
    return text_table(["codec", "error of keys", "error of scores"], rows)


def speed_table(rounds: int, device: str) -> str:
    """Encoding and decoding one layer's keys and values."""
    keys, values = (states(spectrum, BLOCK, 0).to(device) for spectrum in SPECTRA.values())
    transform = TransformCodec(bits_per_element=16 / 8.5, tokens=TOKENS)
    pairs: dict[str, tuple[Codec, Codec]] = {
        "transform, 8.5×": (transform, transform),
        "low rank 16/32, int8": (LowRankInt8(RANKS["keys"]), LowRankInt8(RANKS["values"])),
        "integers of 4 bits": (UniformInt(4, axis="channel"), UniformInt(4)),
    }

    def both(codecs: tuple[Codec, Codec], fitted: list[Fitted]) -> None:
        for codec, state, X in zip(codecs, fitted, (keys, values), strict=True):
            codec.decode(codec.encode(X, state), state)

    rows = {
        name: partial(both, codecs, [codec.fit(X) for codec, X in zip(codecs, (keys, values), strict=True)])
        for name, codecs in pairs.items()
    }
    rows["learning keys, transform"] = lambda: transform.fit(keys)
    return text_table(
        ["keys and values", "ms"], [[name, f"{1e3 * time:.1f}"] for name, time in medians(rows, rounds, device).items()]
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(machine())
    for role in SPECTRA:
        print(f"\n{HEADS} heads, {TOKENS} tokens, {CHANNELS} channels\n{error_table(role)}")
    print(f"\nQueries of another basis than the keys'\n{score_table()}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        print(f"\nEncode and decode {HEADS}×{BLOCK}×{CHANNELS}, {device}, median of {options.rounds}")
        print(speed_table(options.rounds, device))


if __name__ == "__main__":
    main()
