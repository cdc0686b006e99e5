import math

import pytest
import torch

from eigenscope.geometry import cayley_menger_volumes, simplex_volumes


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def flat_pentachora(height: float, dim: int, count: int = 500) -> torch.Tensor:
    """Unit vectors, but the last point at a height over a point within the hull of the others, in random order."""
    vertices = torch.nn.functional.normalize(random(count, 5, dim), dim=-1)
    weights = torch.rand(count, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    foot = (weights / weights.sum(-1, keepdim=True)) @ vertices[:, :4]
    normal = torch.linalg.qr(torch.cat([vertices[:, 1:4] - vertices[:, :1], random(count, 1, dim, seed=2)], 1).mT).Q
    vertices[:, 4:] = foot + height * normal[..., 3:].mT
    return vertices[:, torch.randperm(5, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("form", [simplex_volumes, cayley_menger_volumes])
def test_regular_simplices(form, k):
    side_root_two = torch.eye(k + 1, dtype=torch.float64)
    exact = math.sqrt(k + 1) / math.factorial(k)
    assert form(side_root_two).item() == pytest.approx(exact, rel=1e-12)
    assert form(3 * side_root_two).item() == pytest.approx(3**k * exact, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_a_full_simplex_is_a_determinant_and_both_forms_agree(k):
    vertices = random(3, 2, k + 1, k)
    exact = torch.linalg.det(vertices[..., 1:, :] - vertices[..., :1, :]).abs() / math.factorial(k)
    torch.testing.assert_close(simplex_volumes(vertices), exact, rtol=1e-11, atol=0)
    torch.testing.assert_close(cayley_menger_volumes(vertices), exact, rtol=1e-9, atol=0)


def test_rotation_translation_order_and_batching_change_nothing():
    vertices = random(7, 3, 5, 9)
    volumes = simplex_volumes(vertices)
    rotation = torch.linalg.qr(random(9, 9, seed=1)).Q
    for same in (vertices @ rotation, vertices + random(9, seed=2), vertices[..., [3, 0, 4, 2, 1], :]):
        torch.testing.assert_close(simplex_volumes(same), volumes, rtol=1e-11, atol=0)
    looped = torch.stack([torch.stack([simplex_volumes(v) for v in row]) for row in vertices])
    torch.testing.assert_close(volumes, looped, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dim", [4, 16, 24])
@pytest.mark.parametrize(("height", "bound"), [(1e-1, 1e-6), (1e-3, 5e-5), (1e-4, 5e-4)])
def test_flat_pentachora_keep_their_digits(height, bound, dim):
    rounded = flat_pentachora(height, dim).float()
    edges = rounded.double()[:, 1:] - rounded.double()[:, :1]
    exact = torch.linalg.qr(edges.mT, mode="r").R.diagonal(dim1=-2, dim2=-1).prod(-1).abs() / 24
    assert ((simplex_volumes(rounded.double()) - exact).abs() / exact).median() < 1e-11
    volumes = simplex_volumes(rounded)
    error = (volumes - exact).abs() / exact
    assert volumes.dtype == torch.float32
    assert volumes.min() > 0
    assert error.median() < bound
    assert error.max() < 100 * bound


def test_gradients_of_flat_pentachora_in_float32():
    vertices = flat_pentachora(1e-3, 16).float().requires_grad_()
    exact = vertices.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(simplex_volumes(vertices).sum(), vertices)
    (expected,) = torch.autograd.grad(simplex_volumes(exact).sum(), exact)
    error = (gradient - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < 1e-2
    assert error.median() < 1e-4


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 4, 3), (2, 2, 1)])
def test_gradients(shape, ridge):
    vertices = random(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: simplex_volumes(v, ridge), (vertices,))
    assert torch.autograd.gradgradcheck(lambda v: simplex_volumes(v, ridge), (vertices,))


def test_the_ridge_is_one_on_the_gram_matrix():
    vertices = random(4, 5, 7)
    edges = vertices[:, 1:] - vertices[:, :1]
    gram = edges @ edges.mT + 0.3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(simplex_volumes(vertices, 0.3), torch.linalg.det(gram).sqrt() / 24, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0])
def test_degenerate_simplices_have_finite_gradients(scale, ridge, dtype):
    vertices = scale * random(6, 5, 6, dtype=dtype)
    vertices[0] = vertices[0, :1]  # all in one point
    vertices[1, 1] = vertices[1, 0]  # the first edge has no length
    vertices[2, 4] = vertices[2, 3]
    vertices[3, 2] = vertices[3, :2].mean(0)  # on a line
    vertices[4, :, 3:] = 0  # in a plane of three dimensions
    vertices[5, 2:] += 1e4 * random(3, 6, dtype=dtype)  # long edges after a short one
    vertices.requires_grad_()
    volumes = simplex_volumes(vertices, ridge)
    volumes.sum().backward()
    assert volumes.isfinite().all()
    assert vertices.grad.isfinite().all()
    assert (vertices.grad[0] == 0).all()
    if ridge:
        assert volumes.min() >= 0.99 * ridge**2 / 24
    elif scale == 1:
        assert volumes[:2].eq(0).all()


def test_dtypes_and_autocast():
    vertices = random(8, 5, 8, dtype=torch.float32)
    assert simplex_volumes(vertices.bfloat16()).dtype == torch.float32
    assert cayley_menger_volumes(vertices.half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = simplex_volumes(vertices, 1e-3)
    assert torch.equal(inside, simplex_volumes(vertices, 1e-3))
    assert simplex_volumes(torch.zeros(0, 5, 8)).shape == (0,)


@pytest.mark.parametrize("form", [simplex_volumes, cayley_menger_volumes])
@pytest.mark.parametrize(
    ("vertices", "words"),
    [
        (torch.ones(5, 3), r"vertices must be at most D \+ 1 points, got 5 in D = 3: a 4-simplex has no volume"),
        (torch.ones(2, 4, 2), "a 3-simplex has no volume in fewer than 3"),
        (torch.ones(1, 3), r"shape \(1, 3\)"),
        (torch.ones(3), "vertices must be real"),
        (torch.ones(5, 4, dtype=torch.int64), "int64"),
    ],
)
def test_bad_vertices(form, vertices, words):
    with pytest.raises(ValueError, match=words):
        form(vertices)


@pytest.mark.parametrize("ridge", [-1e-3, math.nan, math.inf])
def test_bad_ridge(ridge):
    with pytest.raises(ValueError, match=r"ridge must be .* >= 0, got"):
        simplex_volumes(torch.ones(5, 4), ridge)
