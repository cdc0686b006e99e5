"""Matrices for property tests: any shape, kind, scale and layout, and the spectra they are made of."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st

SCALES = {torch.float32: (1e-44, 1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e30, 1e37), torch.float64: (1e-300, 1e-20, 1.0, 1e20)}
KINDS = ("full", "zero", "rank one", "half rank", "equal", "pairs", "sparse", "constant")


class Case(NamedTuple):
    """Matrices and how they came about, for the report of a failure."""

    kind: str
    scale: float
    A: torch.Tensor


def with_spectrum(m, n, values, generator):
    """An m×n float64 matrix of given singular values, as many as its short side."""
    r = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(k, r, dtype=torch.float64, generator=generator)).Q for k in (m, n))
    return (U * torch.as_tensor(values, dtype=torch.float64)) @ V.mT


def made(kind, m, n, generator):
    r = min(m, n)
    if kind in ("full", "sparse"):
        A = torch.randn(m, n, dtype=torch.float64, generator=generator)
        return A if kind == "full" else A * (torch.rand(m, n, generator=generator) < 0.1)
    if kind in ("zero", "constant"):
        return torch.full((m, n), float(kind == "constant"), dtype=torch.float64)
    values = torch.ones(r) if kind == "equal" else torch.arange(r, 0, -1) // 2 + 1.0
    values[{"rank one": 1, "half rank": (r + 1) // 2}.get(kind, r) :] = 0
    return with_spectrum(m, n, values, generator)


@st.composite
def matrices(draw, dtypes=(torch.float32, torch.float64), longest=64):
    """Batches (b, m, n), of which b may be 0."""
    m, n = (draw(st.integers(1, longest)) for _ in range(2))
    dtype, kind = draw(st.sampled_from(dtypes)), draw(st.sampled_from(KINDS))
    scale = draw(st.sampled_from(SCALES.get(dtype, (1.0,))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 2))
    A = torch.stack([made(kind, m, n, generator) for _ in range(max(1, count))])[:count].mul(scale).to(dtype)
    layout = draw(st.sampled_from(("contiguous", "transposed", "strided")))
    if layout == "transposed":
        A = A.mT.contiguous().mT
    elif layout == "strided":
        A = torch.stack([A, A], -1)[..., 0]
    return Case(kind, scale, A)
