"""Benchmark of 4-simplex volumes: batched or looped, orthogonalised edges or determinants; time and accuracy.

    python benchmarks/geometry.py              # CPU, and CUDA where there is one
    python benchmarks/geometry.py --rounds 9   # steadier medians

Rounds alternate between the rows of a table, so that a machine that slows down slows all of them. Errors are those of
the volumes of the same rounded points, by Householder QR in fp64, with the fifth point at a height over the hull of
the other four; a value that is not positive counts as lost, and its error as infinite.
"""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import machine, medians
from torch import Tensor

from eigenscope.geometry import cayley_menger_volumes, simplex_volumes
from eigenscope.text import text_table

HEIGHTS = (1e-1, 1e-3, 1e-4)
OURS = "Gram–Schmidt fp32, one batch (ours)"
REFERENCE = "torch.linalg.qr fp64"
Form = Callable[[Tensor], Tensor]


def householder(vertices: Tensor) -> Tensor:
    edges = vertices[..., 1:, :] - vertices[..., :1, :]
    R = torch.linalg.qr(edges.mT, mode="reduced").R  # its backward needs the reduced mode
    return R.diagonal(dim1=-2, dim2=-1).prod(-1).abs() / math.factorial(edges.shape[-2])


def one_by_one(form: Form) -> Form:
    return lambda vertices: torch.stack([form(simplex) for simplex in vertices])


BATCHED: dict[str, Form] = {
    OURS: simplex_volumes,
    "Gram–Schmidt fp64": lambda v: simplex_volumes(v.double()),
    "torch.linalg.qr fp32": householder,
    REFERENCE: lambda v: householder(v.double()),
    "Cayley–Menger fp32": cayley_menger_volumes,
    "Cayley–Menger fp64": lambda v: cayley_menger_volumes(v.double()),
}
LOOPED: dict[str, Form] = {
    "Gram–Schmidt fp32, a loop": one_by_one(simplex_volumes),
    "torch.linalg.qr fp32, a loop": one_by_one(householder),
    "Cayley–Menger fp64, a loop": one_by_one(lambda v: cayley_menger_volumes(v.double())),
}


def simplices(height: float, dim: int, count: int, device: str) -> Tensor:
    """(count, 5, dim) fp32: four random unit vectors and a point over a point within their hull."""
    generator = torch.Generator().manual_seed(0)
    corners = F.normalize(torch.randn(count, 4, dim, dtype=torch.float64, generator=generator), dim=-1)
    weights = torch.rand(count, 1, 4, dtype=torch.float64, generator=generator)
    foot = (weights / weights.sum(-1, keepdim=True)) @ corners
    outside = torch.randn(count, 1, dim, dtype=torch.float64, generator=generator)
    normal = torch.linalg.qr(torch.cat([corners[:, 1:] - corners[:, :1], outside], 1).mT).Q[..., 3:].mT
    return torch.cat([corners, foot + height * normal], 1).float().to(device)


def run(form: Form, vertices: Tensor, backward: bool) -> Callable[[], object]:
    vertices = vertices.detach().requires_grad_(backward)
    return lambda: form(vertices).sum().backward() if backward else form(vertices)


def microseconds(
    forms: dict[str, Form], inputs: dict[str, Tensor], backward: bool, rounds: int, device: str
) -> dict[str, float]:
    """Median time per simplex of every form on its own input."""
    times = medians({name: run(form, inputs[name], backward) for name, form in forms.items()}, rounds, device)
    return {name: 1e6 * time / len(inputs[name]) for name, time in times.items()}


def digits(form: Form, vertices: Tensor) -> str:
    """Median relative error and the share of values that are not positive."""
    exact = householder(vertices.double())
    volumes = form(vertices).double()
    lost = ~(volumes > 0)
    error = torch.where(lost, math.inf, (volumes - exact).abs() / exact).median().item()
    return f"{error:.0e}, {100 * lost.float().mean().item():.0f} %"


def table(dim: int, count: int, looped: int, rounds: int, device: str) -> None:
    forms = BATCHED | LOOPED
    vertices = simplices(1.0, dim, count, device)
    inputs = {name: vertices[:looped] if name in LOOPED else vertices for name in forms}
    forward = microseconds(forms, inputs, False, rounds, device)
    both = microseconds(forms, inputs, True, rounds, device)
    flat = {height: simplices(height, dim, 4096, device) for height in HEIGHTS}
    print(f"\n{count} 4-simplices at D = {dim} ({looped} in a loop), {device}, median of {rounds}")
    header = ["form", "fwd µs each", "over ours", "fwd + bwd µs", "over ours", *(f"at {h:g}" for h in HEIGHTS)]
    rows = []
    for name, form in forms.items():
        times = [f"{forward[name]:.2f}", f"{forward[name] / forward[OURS]:.1f}×"]
        times += [f"{both[name]:.2f}", f"{both[name] / both[OURS]:.1f}×"]
        measured = name in BATCHED and name != REFERENCE
        blank = "reference" if name == REFERENCE else ""
        rows.append([name, *times, *(digits(form, flat[h]) if measured else blank for h in HEIGHTS)])
    print(text_table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--simplices", type=int, default=12_800, help="64 matrices with 200 each by default")
    options = parser.parse_args()
    print(machine())
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        if device == "cuda":
            print(f"\n{torch.cuda.get_device_name()}")
        for dim in (4, 16, 24):
            table(dim, options.simplices, min(200, options.simplices), options.rounds, device)


if __name__ == "__main__":
    main()
