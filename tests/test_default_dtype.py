"""Nothing that is drawn, counted or summed depends on torch's default dtype, which Lightning changes in a step."""

import ast
from pathlib import Path

import pytest
import torch

from eigenscope.data import RecallTask, draw_recall
from eigenscope.data.synthetic_images import _profiles, _turns, draw_images
from eigenscope.geometry import cv_loss, effective_rank, random_unit_points, simplex_volumes, spread_matrices, volume_cv
from eigenscope.linalg import gram_svd, randomized_svd, sort_eigenbasis, top_angle
from eigenscope.linalg.eigenbases import weighted_subspace_distance
from eigenscope.nn.autoencoders.companding import compand, expand
from eigenscope.nn.autoencoders.reconstruction_errors import reconstruction_errors, student_t_errors
from eigenscope.nn.autoencoders.variational import active_dimensions, kl_divergence, reparameterise
from eigenscope.nn.transformers.causal_transformer import rotate
from eigenscope.nn.transformers.taps import tap_features
from eigenscope.noise import NOISE_TYPES, battery_mixtures, draw_noise, pick_from_mixtures
from eigenscope.noise.streams import Streams
from eigenscope.optim import REKLS, SOAP, Muon
from eigenscope.optim.eigenbases.rotation import block_overlap
from tests.dtypes import default_dtype

ROOT = Path(__file__).parents[1]
FACTORIES = {"zeros", "ones", "empty", "full", "rand", "randn", "linspace", "logspace", "eye", "tensor", "as_tensor"}
FACTORIES |= {"fftfreq", "rfftfreq", "hann_window", "scalar_tensor", "normal", "from_list"}
SOURCES = [
    path
    for folder in ("eigenscope", "callbacks", "datamodules", "lightning_modules")
    for path in (ROOT / folder).rglob("*.py")
]


def calls_without_dtype(path):
    """Calls of torch that make a tensor and do not say of what dtype, unless it is a parameter of a network."""
    tree = ast.parse(path.read_text())
    parameters = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "nn.Parameter"]
    exempt = {id(n) for parameter in parameters for n in ast.walk(parameter)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in exempt:
            name = ast.unparse(node.func)
            stated = {keyword.arg for keyword in node.keywords}
            if name.startswith("torch.") and name.rpartition(".")[2] in FACTORIES and not stated & {"dtype", None}:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {name}"


def test_every_tensor_that_is_made_has_a_stated_dtype():
    assert len(SOURCES) > 150
    assert [call for path in SOURCES for call in calls_without_dtype(path)] == []


INDICES = torch.arange(32)
TYPES = INDICES % len(NOISE_TYPES)
M = torch.nn.functional.normalize(torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
SQUARE = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
Q, R = (torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(s))).Q for s in (2, 3))


def seeded():
    return torch.Generator().manual_seed(5)


def stepped(kind):
    weight = torch.nn.Parameter(SQUARE.clone())
    optimizer = kind([weight], lr=0.1)
    for _ in range(2):
        weight.grad = weight.detach() * 2
        optimizer.step()
    return [weight.detach(), *(x for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor))]


def images(size):
    _profiles.cache_clear()
    _turns.cache_clear()
    return draw_images(0, "train", INDICES, size)


FUNCTIONS = {
    "noise of every type": lambda: draw_noise(TYPES, seed=0, epoch=1, samples=INDICES, image_size=8),
    "noise of odd size": lambda: draw_noise(TYPES, seed=0, epoch=INDICES, samples=INDICES, image_size=5, clamp=4.0),
    **{
        name: lambda name=name: getattr(Streams(3, INDICES), name)(7)
        for name in ("bits", "uniform", "symmetric", "signs", "normal", "exponential", "laplace", "cauchy")
    },
    "mixtures": lambda: torch.tensor(battery_mixtures(4, ["pairs"], 0), dtype=torch.int64),
    "images of a battery": lambda: pick_from_mixtures(TYPES, torch.ones(3, 16, dtype=torch.bool), 2, 9),
    "synthetic images": lambda: images(16),
    "recall": lambda: draw_recall(RecallTask(), 7, INDICES),
    "volume CV": lambda: volume_cv(M, 16, seeded()),
    "CV loss": lambda: cv_loss(M, 0.5, 16, seeded()),
    "volumes": lambda: simplex_volumes(M[:, :5], ridge=1e-4),
    "effective rank": lambda: effective_rank(M[..., 0].abs()),
    "spread matrices": lambda: spread_matrices(INDICES.view(-1, 1, 1).expand(-1, 2, 3).repeat(40, 1, 1), 300),
    "random points": lambda: random_unit_points(2, 5, 4),
    "Gram SVD": lambda: gram_svd(M, vectors="both"),
    "randomised SVD": lambda: randomized_svd(M, 2, generator=seeded()),
    "sorted eigenbasis": lambda: sort_eigenbasis(Q, SQUARE @ SQUARE.mT),
    "angle": lambda: top_angle(Q, R),
    "distance": lambda: weighted_subspace_distance(Q, R, INDICES[:6].float(), INDICES[:6].float()),
    "overlap map": lambda: block_overlap(Q, R, 4),
    "companding": lambda: expand(*compand(M)),
    "errors": lambda: [reconstruction_errors(M, M.flip(0), kind) for kind in ("mse", "huber", "log_cosh")],
    "Student's t": lambda: student_t_errors(M, M.flip(0), torch.zeros((), dtype=torch.float32)),
    "draw of a latent": lambda: reparameterise(M, M, Streams(1, INDICES[:3])),
    "KL": lambda: [kl_divergence(M, M), active_dimensions(M.abs())],
    "rotary positions": lambda: rotate(SQUARE[None, None], INDICES[:6], 10000.0),
    "taps": lambda: [tap_features(M, kind) for kind in ("svd", "gram_diagonal", "pooled", "zeros")],
    "SOAP": lambda: stepped(SOAP),
    "REKLS": lambda: stepped(REKLS),
    "Muon": lambda: stepped(Muon),
}


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [x for part in result if part is not None for x in tensors(part)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_computes_the_same_at_any_default_dtype(name):
    expected = tensors(FUNCTIONS[name]())
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        with default_dtype(dtype):
            found = tensors(FUNCTIONS[name]())
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype, dtype
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), dtype
