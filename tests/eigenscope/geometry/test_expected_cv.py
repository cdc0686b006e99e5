import math

import pytest
import torch
import torch.nn.functional as F

from eigenscope.geometry import expected_cv, simplex_volumes, volume_cv


@pytest.mark.parametrize(
    ("dim", "published"),
    [(4, 0.9231), (5, 0.6252), (8, 0.3624), (16, 0.2030), (20, 0.1731), (24, 0.1531), (32, 0.1272)],
)
def test_pentachora(dim, published):
    assert expected_cv(dim) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(("dim", "tolerance"), [(4, 0.01), (8, 0.003), (16, 0.003), (24, 0.003)])
def test_it_is_what_volume_cv_measures(dim, tolerance):
    generator = torch.Generator().manual_seed(0)
    trials = F.normalize(torch.randn(400, 256, dim, generator=generator), dim=-1)
    assert volume_cv(trials, generator=generator).cv.mean().item() == pytest.approx(expected_cv(dim), abs=tolerance)


def test_chords():
    assert expected_cv(1, k=1) == pytest.approx(1)  # of two points: length 0 or 2
    assert expected_cv(2, k=1) == pytest.approx(math.sqrt(math.pi**2 / 8 - 1))  # of a circle: E = 4/π, E² = 2
    assert expected_cv(3, k=1) == pytest.approx(math.sqrt(2 / (4 / 3) ** 2 - 1))  # of a sphere: E = 4/3


@pytest.mark.parametrize(("dim", "k"), [(3, 2), (3, 3), (7, 5)])
def test_other_simplices(dim, k):
    points = torch.randn(200_000, k + 1, dim, generator=torch.Generator().manual_seed(0))
    volumes = simplex_volumes(F.normalize(points, dim=-1)).double()
    assert (volumes.std() / volumes.mean()).item() == pytest.approx(expected_cv(dim, k), rel=0.01)


@pytest.mark.parametrize(("dim", "k", "words"), [(3, 4, "dim must be at least k = 4, got 3"), (4, 0, "k must be")])
def test_bad_input(dim, k, words):
    with pytest.raises(ValueError, match=words):
        expected_cv(dim, k)
