import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eigenscope.geometry import cayley_menger_volumes, cv_loss, effective_rank, expected_cv, simplex_volumes, volume_cv

DTYPES = st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64))
SCALES = st.sampled_from((1e-44, 1e-38, 1e-30, 1e-20, 1e-3, 1.0, 1e3, 1e20, 1e30, 3e37))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def points(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


@given(st.integers(1, 6), st.integers(0, 8), SCALES, DTYPES, st.integers(0, 2), st.booleans(), st.integers(0, 2**32))
def test_volumes_are_those_of_the_points_wherever_they_fit(k, more, scale, dtype, batch, flat, seed):
    vertices = points(2, k + 1, k + more, seed=seed)[:batch]
    if flat:
        vertices[..., -1, :] = vertices[..., 0, :]
    vertices = (vertices * scale).to(dtype)
    vertices = torch.where(vertices.isfinite(), vertices, 1)  # 16-bit numbers end early
    out = torch.promote_types(dtype, torch.float32)
    found, determinants = simplex_volumes(vertices), cayley_menger_volumes(vertices)
    assert found.dtype == determinants.dtype == out
    # In float64 and at scale 1, from the Gram determinant; then as a rational number times the power of the scale.
    edges = vertices[..., 1:, :].double() - vertices[..., :1, :].double()
    largest = edges.abs().amax((-2, -1), keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    R = torch.linalg.qr((edges / largest).mT, mode="r").R
    lengths = R.diagonal(dim1=-2, dim2=-1).abs()
    for i in range(batch):
        exact = Fraction(lengths[i].prod().item()) * Fraction(largest[i].item()) ** k / math.factorial(k)
        # Of each length: the rounding of the edges and of (D + 2 k) operations, relative to the longest edge, 1.
        share = (
            math.prod(1 + (k + more + 2 * k) * k * torch.finfo(out).eps / max(x, 1e-30) for x in lengths[i].tolist())
            - 1
        )
        near = exact * Fraction(min(share, 1e30)) + Fraction(torch.finfo(out).smallest_normal)
        if exact + near < Fraction(torch.finfo(out).max):
            assert abs(Fraction(found[i].item()) - exact) <= near
        elif exact - near > Fraction(torch.finfo(out).max):
            assert found[i].isinf()
        assert not found[i].signbit()
        assert not determinants[i].signbit()
    if not flat and k > 1 and 1e-3 <= scale <= 1e3 and dtype == torch.float64:
        torch.testing.assert_close(determinants, found, rtol=1e-4, atol=1e-9 * scale**k)


@given(st.integers(5, 16), st.integers(4, 16), SCALES, DTYPES, st.integers(0, 2), st.booleans(), st.integers(0, 2**32))
def test_a_cv_knows_no_scale(rows, dim, scale, dtype, batch, default64, seed):
    base = points(2, rows, dim, seed=seed)[:batch]
    if dtype in (torch.float16, torch.bfloat16) or scale in (1e-44, 1e-38):
        base, scale = base.to(torch.bfloat16).double(), 2.0**-100 if dtype != torch.float16 else 1.0
    scaled = (base * scale).to(dtype)
    torch.set_default_dtype(torch.float64 if default64 else torch.float32)
    try:
        found = volume_cv(scaled, 16, seeded(seed))
    finally:
        torch.set_default_dtype(torch.float32)
    out = torch.promote_types(dtype, torch.float32)
    exact = volume_cv((scaled.double() / scale), 16, seeded(seed))
    eps = torch.finfo(out).eps
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == out
        # Volumes of D-dimensional points to some D² eps of the mean; the standard error is a product of two CVs.
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=200 * dim * eps + 1e-13)


@given(st.integers(5, 12), st.integers(4, 12), SCALES, st.sampled_from((0.0, 1e-4, 1.0)), st.integers(0, 2**32))
def test_the_loss_and_its_gradient_are_finite_at_any_scale(rows, dim, scale, ridge, seed):
    P = (points(2, rows, dim, seed=seed) * scale).float().requires_grad_()
    loss = cv_loss(P, 0.3, 16, seeded(seed), ridge)
    (gradient,) = torch.autograd.grad(loss, P)
    assert loss.isfinite()
    if scale >= 1e-30 or ridge:  # without a ridge the gradient grows as one over the scale
        assert gradient.isfinite().all()
    exact = P.detach().double().requires_grad_()
    fine = cv_loss(exact, 0.3, 16, seeded(seed), ridge)
    torch.testing.assert_close(loss.double(), fine, rtol=1e-3, atol=1e-4)
    if 1e-30 <= scale <= 1e3 and ridge <= 100 * scale**2:  # below the ridge volumes hardly differ, but by rounding
        (right,) = torch.autograd.grad(fine, exact)
        assert (gradient - right).norm() <= 2e-2 * right.norm() + 1e-5 / max(scale, ridge**0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_makes_nan_of_its_matrix_alone(bad):
    P = points(2, 8, 5)
    P[1, 3, 2] = bad
    cv, error = volume_cv(P, 200, seeded(0))
    assert cv.isnan().tolist() == error.isnan().tolist() == [False, True]
    assert simplex_volumes(P[:, 1:6]).isnan().tolist() == [False, True]
    assert cayley_menger_volumes(P[:, 1:6]).isnan().tolist() == [False, True]


@given(
    st.integers(1, 64),
    st.integers(0, 2),
    st.sampled_from((1e-38, 1e-20, 1.0, 1e20, 3e38)),
    DTYPES,
    st.integers(0, 64),
    st.integers(0, 2**32),
)
def test_effective_ranks_are_exponentials_of_entropies(r, batch, scale, dtype, zeros, seed):
    S = torch.rand(2, r, dtype=torch.float64, generator=seeded(seed))[:batch]
    S[..., r - min(zeros, r) :] = 0
    S = (S * scale).to(dtype)
    S = torch.where(S.isfinite(), S, 1)
    point = S.clone().requires_grad_()
    found = effective_rank(point)
    (gradient,) = torch.autograd.grad(found.sum(), point)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    for spectrum, rank in zip(S.tolist(), found.tolist(), strict=True):
        shares = [x / max(spectrum) for x in spectrum if x]
        exact = math.exp(-math.fsum(x / sum(shares) * math.log(x / sum(shares)) for x in shares)) if shares else 0
        assert rank == pytest.approx(exact, rel=200 * torch.finfo(found.dtype).eps)
    assert gradient.isfinite().all() or scale == 1e-38
    assert (gradient[(S == 0).all(-1)] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_an_effective_rank_of_what_is_no_spectrum_is_nan(bad):
    assert effective_rank(torch.tensor([bad, 1.0])).isnan()


def moments_of_volume(n, k):
    """E[V²] / E[V]² of k + 1 uniform points of the sphere, by Miles' formula with products instead of Γ functions."""

    def log_moment(m):
        total = (k + 1) * (math.lgamma(n / 2) - math.lgamma((n + m) / 2))
        a = (k + 1) * (n + m - 2) / 2 + 1
        total += math.lgamma(a) - math.lgamma(a - m / 2)
        return total + sum(math.lgamma((n - k + m + j) / 2) - math.lgamma((n - k + j) / 2) for j in range(1, k + 1))

    return log_moment(2) - 2 * log_moment(1)


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_closed_form_is_that_of_the_moments(dim, k):
    dim = max(dim, k)
    assert expected_cv(dim, k) == pytest.approx(math.sqrt(math.expm1(moments_of_volume(dim, k))), rel=1e-9)


@given(st.integers(1, 8), st.integers(7, 60))
def test_the_closed_form_ends_as_its_asymptote(k, digits):
    # k of k + 1 independent lengths and one constraint: CV² dim tends to k / (2 (k + 1))
    assert expected_cv(10**digits, k) ** 2 * 10**digits == pytest.approx(k / (2 * (k + 1)), rel=1e-5)
