import math

import numpy as np
import pytest
import scipy.linalg
import torch

from eigenscope.linalg import principal_angles, sort_eigenbasis, top_angle, weighted_subspace_distance

RIGHT = math.pi / 2
ANGLES = [1e-7, 1e-5, 1e-3, 0.3, RIGHT - 1e-6, RIGHT]


def basis(*shape: int, seed: int = 0) -> torch.Tensor:
    """(..., n, n) float64, orthonormal columns, distributed without a preferred direction."""
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def rotated(Q: torch.Tensor, i: int, j: int, angle: float) -> torch.Tensor:
    """Columns i and j turned by an angle in their plane."""
    R, c, s = Q.clone(), math.cos(angle), math.sin(angle)
    R[..., i] = c * Q[..., i] + s * Q[..., j]
    R[..., j] = c * Q[..., j] - s * Q[..., i]
    return R


def shuffled(Q: torch.Tensor, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The k leading columns in another order and with other signs; and the order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(k, generator=generator)
    signs = torch.where(torch.rand(k, generator=generator) < 0.5, -1.0, 1.0).double()
    signs[0], signs[1] = 1, -1
    return torch.cat([Q[..., order] * signs, Q[..., k:]], -1), order


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_angles_of_known_rotations(dtype, tolerance):
    Q = basis(16, 16)
    R = Q
    for i, angle in enumerate(reversed(ANGLES)):  # the largest angle in the first plane
        R = rotated(R, i, i + len(ANGLES), angle)
    R = shuffled(R, len(ANGLES))[0]
    angles = principal_angles(Q.to(dtype), R.to(dtype), len(ANGLES))
    assert angles.dtype == torch.float64
    torch.testing.assert_close(angles, torch.tensor(ANGLES, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("angle", ANGLES)
def test_one_plane_to_the_last_digits(angle):
    Q = basis(16, 16)
    R = rotated(Q, 0, 9, angle)
    assert top_angle(Q, R).item() == pytest.approx(angle, rel=1e-8)
    assert top_angle(Q, -R).item() == pytest.approx(angle, rel=1e-8)
    assert top_angle(Q.float(), R.float()).item() == pytest.approx(angle, abs=1e-6)
    assert principal_angles(Q, R, 4)[-1].item() == pytest.approx(angle, rel=1e-8)


def test_rounding_to_float32_does_not_make_an_angle():
    Q = basis(64, 64).float()
    assert principal_angles(Q, shuffled(Q, 8)[0], 8).max() < 1e-14
    scaled = Q * (1 + 1e-3 * uniform(64))  # norms off by 1e-3
    assert principal_angles(Q, scaled, 8).max() < 1e-14


@pytest.mark.parametrize("k", [1, 3, 8, 12])
def test_agrees_with_scipy_and_is_symmetric(k):
    Q, R = basis(12, 12), basis(12, 12, seed=1)
    angles = principal_angles(Q, R, k)
    expected = scipy.linalg.subspace_angles(Q[:, :k].numpy(), R[:, :k].numpy())[::-1]
    np.testing.assert_allclose(angles.numpy(), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(angles, principal_angles(R, Q, k), rtol=0, atol=1e-13)
    assert (angles.diff() >= 0).all()


def test_angles_see_the_span_alone():
    Q, R = basis(12, 12), basis(12, 12, seed=1)
    expected = principal_angles(Q, R, 5)
    mixed = torch.cat([R[:, :5] @ basis(5, 5, seed=2), R[:, 5:] @ basis(7, 7, seed=3)], -1)
    for other in (shuffled(R, 5)[0], mixed):
        torch.testing.assert_close(principal_angles(Q, other, 5), expected, rtol=0, atol=1e-14)
    turned = basis(12, 12, seed=4)
    torch.testing.assert_close(principal_angles(turned @ Q, turned @ R, 5), expected, rtol=0, atol=1e-14)


def test_whole_spaces_coincide():
    Q, R = basis(12, 12), basis(12, 12, seed=1)
    assert principal_angles(Q, R).shape == (12,)
    assert principal_angles(Q, R).max() < 1e-14


def test_a_batch_is_its_matrices():
    Q, R = basis(2, 3, 7, 7), basis(2, 3, 7, 7, seed=1)
    q_values, r_values = uniform(2, 3, 7), uniform(2, 3, 7, seed=1)
    angles, tops = principal_angles(Q, R, 3), top_angle(Q, R)
    distances = weighted_subspace_distance(Q, R, q_values, r_values)
    values, ordered = sort_eigenbasis(Q, R + R.mT)
    assert angles.shape == (2, 3, 3)
    assert tops.shape == distances.shape == (2, 3)
    close = {"rtol": 0, "atol": 1e-14}
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(angles[i, j], principal_angles(Q[i, j], R[i, j], 3), **close)
        torch.testing.assert_close(tops[i, j], principal_angles(Q[i, j], R[i, j], 1)[0], **close)
        one = weighted_subspace_distance(Q[i, j], R[i, j], q_values[i, j], r_values[i, j])
        torch.testing.assert_close(distances[i, j], one, **close)
        one_values, one_ordered = sort_eigenbasis(Q[i, j], R[i, j] + R[i, j].mT)
        torch.testing.assert_close(values[i, j], one_values, **close)
        assert torch.equal(ordered[i, j], one_ordered)


def test_sorting_recovers_the_decomposition():
    Q, values = basis(20, 20), torch.logspace(6, -1, 20, dtype=torch.float64)
    A = (Q * values) @ Q.T
    stored, _ = shuffled(Q, 20)
    found, ordered = sort_eigenbasis(stored, A)
    torch.testing.assert_close(found, values, rtol=1e-8, atol=0)
    torch.testing.assert_close((ordered * Q).sum(0).abs(), torch.ones(20, dtype=torch.float64))
    found, ordered = sort_eigenbasis(stored.float(), A.float())
    assert (found.dtype, ordered.dtype) == (torch.float64, torch.float32)
    exact = stored.float().double()
    quotients = (exact.T @ A.float().double() @ exact).diagonal().sort(descending=True).values
    torch.testing.assert_close(found, quotients, rtol=1e-7, atol=0)  # float32 products are off by 1e-3 in the last ones
    assert torch.equal(ordered.sort(-1).values, stored.float().sort(-1).values)  # the columns themselves


def test_quotients_are_those_of_a_basis_that_is_not_the_eigenbasis():
    Q, A = basis(6, 6), basis(6, 6, seed=1)
    A = A + A.T
    values, ordered = sort_eigenbasis(Q, A)
    torch.testing.assert_close(values, (ordered.T @ A @ ordered).diagonal())
    assert (values.diff() <= 0).all()
    assert sort_eigenbasis(torch.eye(6), torch.eye(6))[1].equal(torch.eye(6))  # equal values: the order stays


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 5), (3, 6)])
def test_distance_of_a_rotation_in_one_plane(angle, i, j):
    Q, values = basis(7, 7), uniform(7)
    R = rotated(Q, i, j, angle)
    expected = abs(values[i] - values[j]) * math.sin(angle) / values.norm()
    distance = weighted_subspace_distance(Q, R, values, values)
    assert distance.dtype == torch.float64
    assert distance.item() == pytest.approx(expected.item(), rel=1e-7)


def test_distance_agrees_with_the_inner_product():
    Q, R = basis(9, 9), basis(9, 9, seed=1)
    q_values, r_values = (uniform(9, seed=seed).sort(descending=True).values for seed in (0, 1))
    weights = q_values / q_values.norm() + r_values / r_values.norm()
    weights = weights / weights.norm()
    overlap = weights @ (Q.T @ R) ** 2 @ weights
    expected = (1 - overlap).sqrt()
    torch.testing.assert_close(weighted_subspace_distance(Q, R, q_values, r_values), expected)
    torch.testing.assert_close(weighted_subspace_distance(R, Q, r_values, q_values), expected)


def test_distance_is_blind_to_what_is_not_rotation():
    Q, R = basis(9, 9), basis(9, 9, seed=1)
    values = uniform(9)
    expected = weighted_subspace_distance(Q, R, values, values)
    assert expected > 0.1
    other, order = shuffled(R, 9)
    for changed in (
        weighted_subspace_distance(Q, other, values, values[order]),
        weighted_subspace_distance(other, Q, values[order], values),
        weighted_subspace_distance(Q, R, 1e-12 * values, 1e12 * values),
    ):
        torch.testing.assert_close(changed, expected, rtol=1e-12, atol=0)
    assert weighted_subspace_distance(Q, Q, values, values**3) < 1e-15
    assert weighted_subspace_distance(R, other, values, values[order]) < 1e-15


def test_rotation_among_equal_values_is_none():
    Q = basis(9, 9)
    values = torch.tensor([5.0, 5.0, 5.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    mixed = torch.cat([Q[:, :3] @ basis(3, 3, seed=1), Q[:, 3:5] @ basis(2, 2, seed=2), Q[:, 5:]], -1)
    assert weighted_subspace_distance(Q, mixed, values, values) < 1e-15
    assert weighted_subspace_distance(Q, basis(9, 9, seed=1), torch.ones(9), torch.full((9,), 3.0)) < 1e-14
    assert weighted_subspace_distance(Q, mixed, torch.zeros(9), torch.zeros(9)) == 0


def test_distance_lies_between_zero_and_one():
    Q, R = basis(200, 5, 5).float(), basis(200, 5, 5, seed=1).float()
    distances = weighted_subspace_distance(Q, R, uniform(200, 5) ** 8, uniform(200, 5, seed=1) ** 8)
    assert (distances >= 0).all()
    assert (distances <= 1).all()
    assert distances.max() > 0.9
    one = torch.tensor([1.0, 0.0, 0.0, 0.0])
    Q = basis(4, 4)
    assert weighted_subspace_distance(Q, Q.roll(1, -1), one, one).item() == pytest.approx(1, abs=1e-15)
    stretched = Q.float() * 1.001  # slightly too long, as rounding may leave it
    assert weighted_subspace_distance(stretched, stretched.roll(1, -1), one, one) == 1


def test_negative_values_count_as_zero():
    Q, R, values = basis(4, 4), basis(4, 4, seed=1), torch.tensor([3.0, 2.0, 0.0, 0.0])
    noisy = torch.tensor([3.0, 2.0, -1e-3, -5.0])
    expected = weighted_subspace_distance(Q, R, values, values)
    torch.testing.assert_close(weighted_subspace_distance(Q, R, noisy, noisy), expected)


@pytest.mark.parametrize("k", [0, -1, 5, 7])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to the 4 columns .* got {k}"):
        principal_angles(torch.eye(4), torch.eye(4), k)


def test_more_columns_than_dimensions_are_not_independent():
    with pytest.raises(ValueError, match="k must be from 1 to the 3 columns"):
        principal_angles(torch.ones(3, 5), torch.ones(3, 5))


@pytest.mark.parametrize(
    ("Q", "R"),
    [
        (torch.eye(4), torch.eye(5)),
        (torch.eye(4), torch.eye(4).expand(2, 4, 4)),
        (torch.ones(4), torch.ones(4)),
        (torch.eye(4, dtype=torch.int64), torch.eye(4)),
        (torch.eye(4), torch.eye(4, dtype=torch.complex64)),
    ],
)
def test_what_is_not_a_pair_of_bases(Q, R):
    values = torch.ones(Q.shape[-1])
    for call in (
        lambda: principal_angles(Q, R),
        lambda: top_angle(Q, R),
        lambda: weighted_subspace_distance(Q, R, values, values),
        lambda: sort_eigenbasis(Q, R),
    ):
        with pytest.raises(ValueError, match=r"must be real (square )?matrices of one shape, got torch"):
            call()


def test_values_must_fit_their_columns():
    eye, good = torch.eye(4), torch.ones(4)
    for bad in (torch.ones(3), torch.ones(2, 4), torch.ones(4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="q_values must be real, one value a column"):
            weighted_subspace_distance(eye, eye, bad, good)
        with pytest.raises(ValueError, match="r_values must be real, one value a column"):
            weighted_subspace_distance(eye, eye, good, bad)
    with pytest.raises(ValueError, match="Q and A must be real square matrices"):
        sort_eigenbasis(torch.ones(4, 3), torch.ones(4, 3))
