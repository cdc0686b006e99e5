import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from eigenscope.geometry import cv_loss, expected_cv, simplex_volumes, volume_cv
from eigenscope.geometry.volume_cv import _random_simplices


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype, generator=seeded(seed)), dim=-1)


def collapsed_rows(spread: float, dim: int = 16, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = seeded()
    direction = F.normalize(torch.randn(dim, dtype=dtype, generator=generator), dim=-1)
    return F.normalize(direction + spread * torch.randn(64, dim, dtype=dtype, generator=generator), dim=-1)


def every_pentachoron(points: torch.Tensor) -> torch.Tensor:
    return simplex_volumes(points[torch.tensor(list(itertools.combinations(range(len(points)), 5)))])


def test_draws_are_distinct_uniform_and_each_matrix_has_its_own():
    labels = torch.arange(7.0).expand(3, 2, 4, 7).mT + 10 * torch.arange(6.0).reshape(3, 2, 1, 1)
    corners = _random_simplices(labels, 6000, seeded())
    assert corners.shape == (3, 2, 6000, 5, 4)
    rows = corners[..., 0].sort(-1).values - 10 * torch.arange(6.0).reshape(3, 2, 1, 1)
    assert rows.min() == 0
    assert rows.max() == 6
    assert (rows.diff() > 0).all()
    sets, counts = (10 ** rows.long()).sum(-1).unique(return_counts=True)
    assert len(sets) == math.comb(7, 5)
    expected = 36_000 / 21
    assert ((counts - expected) ** 2 / expected).sum() < 45.3  # chi square with 20 degrees of freedom, 0.1 %
    assert (rows[0, 0] != rows[2, 1]).any(-1).float().mean() > 0.9


def test_all_five_rows_when_there_are_five():
    corners = _random_simplices(torch.arange(5.0)[:, None].expand(5, 4), 10, seeded())
    assert torch.equal(corners[..., 0].sort(-1).values, torch.arange(5.0).expand(10, 5))


def test_it_estimates_the_cv_over_every_pentachoron():
    points = unit_rows(3, 12, 8)
    cv, error = volume_cv(points, 20_000, seeded())
    for matrix, estimate, sigma in zip(points, cv, error, strict=True):
        volumes = every_pentachoron(matrix)
        assert abs(estimate - volumes.std(correction=0) / volumes.mean()) < 3 * sigma < 0.01


@pytest.mark.parametrize(("dim", "simplices", "tolerance"), [(16, 200, 0.06), (8, 64, 0.08), (4, 1000, 0.08)])
def test_standard_error_is_the_spread_over_repetitions(dim, simplices, tolerance):
    cv, error = volume_cv(unit_rows(64, dim).expand(2000, -1, -1), simplices, seeded())
    assert error.mean().item() == pytest.approx(cv.std().item(), rel=tolerance)


def test_scale_origin_and_dtype_do_not_matter():
    points = unit_rows(2, 32, 16, dtype=torch.float64)
    cv, error = volume_cv(points, generator=seeded())
    assert cv.dtype == torch.float64
    for same in (1e-12 * points, 1e12 * points, points + 1, points.float() * 1e-12, points.float() * 1e12):
        estimate = volume_cv(same, generator=seeded())
        assert estimate.cv.dtype == same.dtype
        torch.testing.assert_close(estimate.cv.double(), cv, rtol=1e-4, atol=0)
        torch.testing.assert_close(estimate.standard_error.double(), error, rtol=1e-3, atol=0)
    assert volume_cv(points.bfloat16()).cv.dtype == torch.float32


def test_it_is_the_standard_deviation_over_the_mean():
    points = unit_rows(3, 9, 6)
    volumes = simplex_volumes(_random_simplices(points, 10, seeded()))
    torch.testing.assert_close(volume_cv(points, 10, seeded()).cv, volumes.std(-1) / volumes.mean(-1))


def test_batched_equals_looped():
    # every 4-simplex of five rows is the same one, so only rounding of equal volumes is left; of six, six kinds
    assert volume_cv(unit_rows(3, 5, 6), generator=seeded()).cv.max() < 1e-5
    points = unit_rows(2, 3, 6, 6)
    whole = volume_cv(points, 5000, seeded())
    assert whole.cv.shape == whole.standard_error.shape == (2, 3)
    alone = volume_cv(points[1, 2], 5000, seeded())
    assert abs(whole.cv[1, 2] - alone.cv) < 4 * (whole.standard_error[1, 2] ** 2 + alone.standard_error**2).sqrt()
    assert torch.equal(volume_cv(points[:1, :1], 50, seeded()).cv[0, 0], volume_cv(points[0, 0], 50, seeded()).cv)
    assert torch.equal(volume_cv(points, 50, seeded()).cv, volume_cv(points, 50, seeded()).cv)
    assert volume_cv(torch.ones(0, 5, 4)).cv.shape == (0,)


def test_equal_rows_have_no_cv():
    points = torch.stack([torch.ones(8, 4), unit_rows(8, 4)])
    cv, error = volume_cv(points, generator=seeded())
    assert cv.isnan().tolist() == error.isnan().tolist() == [True, False]


def test_gradient_of_the_loss():
    points = unit_rows(2, 7, 5, dtype=torch.float64).requires_grad_()
    for ridge in (0.0, 1e-2):
        assert torch.autograd.gradcheck(lambda p, ridge=ridge: cv_loss(p, 0.3, 6, seeded(), ridge), (points,))


def test_the_loss_is_the_mean_square_over_matrices():
    points = unit_rows(4, 3, 9, 6)
    cv = volume_cv(points, 64, seeded()).cv
    torch.testing.assert_close(cv_loss(points, 0.7, 64, seeded(), ridge=0), (cv - 0.7).square().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [4, 8, 16])
def test_collapsed_rows_are_pushed_apart(dim, dtype):
    points = collapsed_rows(1e-3, dim, dtype).requires_grad_()
    loss = cv_loss(points, expected_cv(dim), generator=seeded())
    (gradient,) = torch.autograd.grad(loss, points)
    assert 1e-3 < gradient.norm() < 100
    outwards = points.detach() - points.detach().mean(0)
    assert -(gradient * outwards).sum() > 0.1 * gradient.norm() * outwards.norm()


@pytest.mark.parametrize("simplices", [2, 64])  # of two equal volumes none deviates from the mean, not by rounding
@pytest.mark.parametrize("dim", [4, 16])
def test_coincident_rows_have_a_zero_gradient(dim, simplices):
    points = torch.cat([unit_rows(1, 1, dim).expand(1, 32, -1), unit_rows(1, 32, dim)]).requires_grad_()
    loss = cv_loss(points, 0.2, simplices, seeded())
    loss.backward()
    assert loss.isfinite()
    assert (points.grad[0] == 0).all()
    assert points.grad[1].isfinite().all()
    assert points.grad[1].norm() > 1e-3


@pytest.mark.parametrize("spread", [1e-7, 1e-6, 1e-5])
def test_the_root_does_not_blow_up(spread):
    points = collapsed_rows(spread).requires_grad_()
    cv_loss(points, 0.2, generator=seeded()).backward()
    assert points.grad.isfinite().all()
    assert points.grad.norm() < 1


@pytest.mark.parametrize(("dim", "bias"), [(4, 0.006), (8, 3e-4), (16, 1e-4)])
def test_the_ridge_hardly_moves_the_cv_of_spread_rows(dim, bias):
    points = unit_rows(500, dim, dtype=torch.float64)
    cv = volume_cv(points, 50_000, seeded()).cv
    assert 0 < cv - cv_loss(points, 0.0, 50_000, seeded()).sqrt() < bias


@pytest.mark.parametrize("function", [volume_cv, lambda *points: cv_loss(points[0], 0.2, *points[1:])])
@pytest.mark.parametrize(
    ("points", "words"),
    [
        ((torch.ones(4, 8),), "points must have V >= 5 rows, got V = 4"),
        ((torch.ones(2, 8, 3),), "points must have D >= 4 columns, got D = 3"),
        ((torch.ones(8),), "points must be real matrices"),
        ((torch.ones(8, 4, dtype=torch.int64),), "int64"),
        ((torch.ones(8, 4), 1), "num_simplices must be at least 2, got 1"),
    ],
)
def test_bad_points(function, points, words):
    with pytest.raises(ValueError, match=words):
        function(*points)


@pytest.mark.parametrize(
    ("options", "words"), [({"target": -1.0}, "target"), ({"target": 0.2, "ridge": -1.0}, "ridge")]
)
def test_bad_loss(options, words):
    with pytest.raises(ValueError, match=f"{words} must be a finite number >= 0, got -1"):
        cv_loss(torch.ones(8, 4), **options)
