import math

import pytest
import torch

from eigenscope.optim.eigenbases.factors import KroneckerFactors
from eigenscope.optim.eigenbases.rotation import block_overlap, eigenbasis, measure_rotation, verdict
from eigenscope.optim.eigenbases.snapshots import compare_columns, compare_snapshots, take_snapshot


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def orthogonal(n, seed=0):
    return torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64)).Q


def projected_grad(n, angle, plane=(0, 1)):
    """The identity, projected_grad by an angle in the plane of two axes."""
    R = torch.eye(n, dtype=torch.float64)
    i, j = plane
    R[i, i] = R[j, j] = math.cos(angle)
    R[i, j], R[j, i] = -math.sin(angle), math.sin(angle)
    return R


def factor(values, basis):
    return (basis * values) @ basis.mT


VALUES = torch.tensor([32.0, 16, 8, 4, 2, 1], dtype=torch.float64)


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.3, 1.5])
def test_a_turn_in_one_plane(angle):
    """Of the first and the fifth eigenvector, with eigenvalues a and b: every figure has a closed form."""
    basis = orthogonal(6)
    other = basis @ projected_grad(6, angle, (0, 4))
    found = measure_rotation(eigenbasis(factor(VALUES, other), other), eigenbasis(factor(VALUES, basis), basis), k=3)
    assert float(found.top1_deg) == pytest.approx(math.degrees(angle), rel=1e-6)
    assert float(found.topk_deg) == pytest.approx(math.degrees(angle), rel=1e-6)
    a, b, norm = 32, 2, float(VALUES.norm())
    relative = (a - b) * math.sin(angle) / norm
    assert float(found.distance) == pytest.approx(relative, rel=1e-6)
    assert float(found.change) == pytest.approx(math.sqrt(2) * relative, rel=1e-6)
    assert float(found.shape_change) == pytest.approx(  # |A| = |B|, so the chord between them is the change
        math.sqrt(2) * relative * math.sqrt(1 - relative**2 / 2), rel=1e-6
    )


def test_signs_order_and_multiples_are_not_rotation():
    basis = orthogonal(6)
    shuffled = basis[:, [3, 1, 5, 0, 2, 4]] * torch.tensor([1.0, -1, 1, -1, -1, 1])
    A = factor(VALUES, basis)
    found = measure_rotation(eigenbasis(0.01 * A, shuffled), eigenbasis(A, basis), k=2)
    assert float(found.top1_deg) < 1e-6
    assert float(found.topk_deg) < 1e-6
    assert float(found.distance) < 1e-12
    assert float(found.change) == pytest.approx(0.99)
    assert float(found.shape_change) < 1e-12


def test_columns_are_ordered_by_the_factor():
    basis = orthogonal(6)
    found = eigenbasis(factor(VALUES, basis), basis.flip(-1))
    torch.testing.assert_close(found.vectors, basis)
    torch.testing.assert_close(found.values, VALUES)


def test_numbers_that_are_not_finite_are_nan_and_spoil_no_others():
    A = torch.stack([factor(VALUES, orthogonal(6, seed)) for seed in range(4)])
    Q = torch.stack([orthogonal(6, seed) for seed in range(4)])
    reference = eigenbasis(A, Q)
    A, Q = A.clone(), Q.clone()
    A[1, 2, 3], Q[2, 0, 0] = torch.nan, torch.inf
    found = measure_rotation(eigenbasis(A, Q), reference, k=2)
    for figure in found:
        assert figure.isnan().tolist() == [False, True, True, False]
        torch.testing.assert_close(figure[[0, 3]], torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_factors_of_zeros():
    basis, zeros = orthogonal(6), torch.zeros(6, 6, dtype=torch.float64)
    A = factor(VALUES, basis)
    same = measure_rotation(eigenbasis(zeros, basis), eigenbasis(zeros, basis), k=2)
    assert (float(same.change), float(same.shape_change)) == (0, 0)
    grown = measure_rotation(eigenbasis(A, basis), eigenbasis(zeros, basis), k=2)
    assert (float(grown.change), float(grown.shape_change)) == (math.inf, 1)
    gone = measure_rotation(eigenbasis(zeros, basis), eigenbasis(A, basis), k=2)
    assert (float(gone.change), float(gone.shape_change)) == (1, 1)


def judged(now, reference, k=8):
    """The verdict on two factors, by their exact eigenvectors."""
    bases = [eigenbasis(A, torch.linalg.eigh(A).eigenvectors) for A in (now, reference)]
    found = measure_rotation(*bases, k)
    return float(found.topk_deg), verdict(float(found.topk_deg), float(found.shape_change), float(found.distance))


def test_verdicts_on_factors_that_are_what_they_are_called():
    n = 64
    noise = torch.randn(n, n, generator=generator(), dtype=torch.float64) * 1e-3
    noise = (noise + noise.T) / 2
    isotropic = torch.eye(n, dtype=torch.float64) + noise.roll((5, 5), (0, 1))
    angle, said = judged(isotropic + noise, isotropic)
    assert (angle > 45, said) == (True, "gauge")  # the eigenvectors turn, the matrix does not
    spread = factor(torch.logspace(0, -3, n, dtype=torch.float64), orthogonal(n))
    assert judged(0.5 * spread + 1e-5 * noise, spread)[1] == "stable"
    other = factor(torch.logspace(0, -3, n, dtype=torch.float64), orthogonal(n, 1))
    assert judged(other, spread)[1] == "diverged"


def test_davis_and_kahan_bound_the_angle():
    """What a verdict of gauge rests on: sin θ ≤ ‖E‖ / gap, for random perturbations of a random factor."""
    n, k = 24, 5
    for seed in range(20):
        A = factor(torch.rand(n, generator=generator(seed), dtype=torch.float64), orthogonal(n, seed))
        E = torch.randn(n, n, generator=generator(seed + 100), dtype=torch.float64) * 1e-3
        E = (E + E.T) / 2
        values, changed = (torch.linalg.eigvalsh(M).flip(0) for M in (A, A + E))
        gap = float(values[k - 1] - changed[k])
        bound = float(torch.linalg.matrix_norm(E, 2)) / gap if gap > 0 else math.inf
        assert math.sin(math.radians(judged(A + E, A, k)[0])) <= bound * (1 + 1e-9)


@pytest.mark.parametrize(
    ("topk_deg", "shape_change", "distance", "said"),
    [
        (10.0, 1.0, 1.0, "stable"),
        (10.1, 0.05, 0.05, "gauge"),
        (10.1, 0.051, 0.05, "diverged"),
        (10.1, 0.05, 0.051, "diverged"),
        (math.nan, 0.0, 0.0, "diverged"),
        (0.0, math.inf, 0.0, "diverged"),
        (0.0, 0.0, math.nan, "diverged"),
    ],
)
def test_thresholds(topk_deg, shape_change, distance, said):
    assert verdict(topk_deg, shape_change, distance) == said


def test_a_basis_that_left_an_unchanged_factor_is_no_gauge():
    A = torch.diag(torch.tensor([100.0, 10.0, 1.0, 0.1], dtype=torch.float64))
    found = measure_rotation(
        eigenbasis(A, projected_grad(4, math.pi / 4)), eigenbasis(A, torch.eye(4, dtype=torch.float64)), 1
    )
    assert found.shape_change == 0
    assert verdict(float(found.topk_deg), 0.0, float(found.distance)) == "diverged"


def test_overlap_of_columns_and_of_blocks():
    Q, R = orthogonal(8), orthogonal(8, 1)
    torch.testing.assert_close(block_overlap(Q, R).double(), (Q.T @ R).abs(), atol=1e-6, rtol=0)
    blocks = block_overlap(Q, R, most=3)  # of 3, 3 and 2 columns
    assert blocks.shape == (3, 3)
    cosines = torch.linalg.svdvals(Q[:, 3:6].T @ R[:, 6:])
    assert float(blocks[1, 2]) == pytest.approx(float(cosines.square().mean().sqrt()), rel=1e-5)
    torch.testing.assert_close(block_overlap(Q, Q, most=3), torch.eye(3), atol=1e-3, rtol=0)
    within = torch.block_diag(orthogonal(3, 2), orthogonal(3, 3), orthogonal(2, 4))
    torch.testing.assert_close(block_overlap(Q, R @ within, most=3), blocks, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        block_overlap(Q, R, most=0)


def factors(rows, columns, seed):
    """As an optimizer would hold them."""
    L, R = (
        factor(torch.rand(n, generator=generator(seed + n), dtype=torch.float64), orthogonal(n, seed + n))
        for n in (rows, columns)
    )
    bases = (orthogonal(n, seed + n) for n in (rows, columns))
    return KroneckerFactors(*(x.float() for x in (L, R, *bases)))


def test_batched_is_one_by_one(monkeypatch):
    monkeypatch.setattr("eigenscope.optim.eigenbases.snapshots._ENTRIES", 2 * 12**2)  # two of 12 × 12 at a time
    shapes = {"a": (12, 6), "b": (6, 12), "c": (12, 12), "d": (6, 6), "e": (12, 6)}
    before = {name: factors(*shape, seed=0) for name, shape in shapes.items()}
    after = {name: factors(*shape, seed=40) for name, shape in shapes.items() if name != "d"}
    reference, now = take_snapshot(1, before), take_snapshot(2, after)
    found, columns = compare_snapshots(now, reference, 3), compare_columns(now, reference)
    assert found.keys() == columns.keys() == {(name, side) for name in after for side in "LR"}
    for (name, side), figures in found.items():
        old, new = (eigenbasis(getattr(x, side), getattr(x, f"Q_{side}")) for x in (before[name], after[name]))
        for figure, expected in zip(figures, measure_rotation(new, old, 3), strict=True):
            torch.testing.assert_close(figure, expected)
        torch.testing.assert_close(columns[name, side], block_overlap(new.vectors, old.vectors))


def test_a_snapshot_is_a_copy():
    live = factors(6, 4, seed=0)
    taken = take_snapshot(1, {"a": live})
    kept = [tensor.clone() for basis in taken.bases.values() for tensor in basis]
    for tensor in live:
        tensor.zero_()
    for tensor, expected in zip((t for basis in taken.bases.values() for t in basis), kept, strict=True):
        assert torch.equal(tensor, expected)
    assert list(taken.bases) == [("a", "L"), ("a", "R")]
    assert take_snapshot(1, {}).bases == {}
