import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.linalg import LinAlgError

from eigenscope.linalg import fix_signs, principal_angles, randomized_svd, sort_eigenbasis, weighted_subspace_distance

matrices = runpy.run_path(str(Path(__file__).with_name("matrices.py")))["matrices"]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BAD = st.sampled_from((math.nan, math.inf, -math.inf))
TINY = 1e-320


def orthonormal(n, k, seed):
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


@given(matrices(DTYPES, longest=48), st.sampled_from(("auto", "gram", "subspace", "reference")), st.data())
def test_randomized_factors_are_finite_orthonormal_and_no_larger_than_the_matrix(case, method, data):
    A, out = case.A, torch.promote_types(case.A.dtype, torch.float32)
    rank = data.draw(st.integers(1, min(A.shape[-2:])))
    U, S, Vh = randomized_svd(A, rank, method=method)
    assert {x.dtype for x in (U, S, Vh)} == {out}
    largest = A.double().abs().amax((-2, -1), keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    B, s = A.double() / largest, S.double() / largest[..., 0]
    exact = torch.linalg.svdvals(B)
    n, eps = max(A.shape[-2:]), torch.finfo(out).eps
    for basis in (U, Vh.mT):
        assert (basis.double().mT @ basis.double() - torch.eye(rank)).abs().le(20 * n * eps).all()
    last = torch.finfo(out).smallest_normal * eps / largest[..., 0]
    slack = 20 * n * eps * torch.linalg.matrix_norm(B)[..., None] + last
    assert (s <= exact[..., :rank] + slack).all()
    assert ((s >= 0) & s.isfinite()).all()
    assert (s.diff() <= slack).all()
    if method == "gram":  # the best one: of what is below the root of eps of the top, noise as large may be left
        left_out = torch.linalg.matrix_norm(B - (U.double() * s[..., None, :]) @ Vh.double())
        best = exact[..., rank:].square().sum(-1).sqrt()
        assert (left_out <= best + rank * ((20 * n * eps) ** 0.5 * exact[..., 0] + last[..., 0])).all()


@given(
    st.integers(1, 32),
    st.integers(0, 32),
    st.lists(st.sampled_from((0.0, 1e-12, 1e-7, 0.3, 1.0, math.pi / 2 - 1e-12, math.pi / 2)), min_size=1, max_size=6),
    st.sampled_from((1e-150, 1.0, 1e150)),
    st.integers(0, 2**32),
)
def test_principal_angles_are_those_turned_by(columns, more, angles, scale, seed):
    k, turned = len(angles), torch.tensor(sorted(angles), dtype=torch.float64)
    both = orthonormal(2 * k + more, 2 * k, seed)
    Q, R = both[:, :k], both[:, :k] * turned.cos() + both[:, k:] * turned.sin()
    mixed = R @ orthonormal(k, k, seed + 1) * scale  # another basis of the same span
    found = principal_angles(Q / scale, mixed)
    # The bases are orthonormal to a few n eps, which angles are as sensitive to at either end.
    torch.testing.assert_close(found, turned, rtol=0, atol=40 * (2 * k + more) * 2**-52)
    torch.testing.assert_close(principal_angles(mixed, Q), found, rtol=0, atol=80 * (2 * k + more) * 2**-52)
    assert ((found >= 0) & (found <= math.pi / 2)).all()


@given(st.integers(1, 64), BAD, st.sampled_from(DTYPES), st.data())
def test_angles_of_what_is_not_finite_are_refused(n, bad, dtype, data):
    k = data.draw(st.integers(1, n))
    Q = orthonormal(n, k, n).to(dtype)
    broken = Q.clone()
    broken[data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, k - 1))] = bad
    for pair in ((Q, broken), (broken, Q)):
        with pytest.raises(LinAlgError, match="must be finite"):
            principal_angles(*pair)
    assert weighted_subspace_distance(Q, broken, torch.ones(k), torch.ones(k)).isnan()
    if n == k:
        assert not sort_eigenbasis(Q, broken)[0].isfinite().all()


@given(st.integers(1, 24), st.sampled_from((TINY, 1e-200, 1e-30, 1e30, 1e200, 1e306)), st.integers(0, 2**32), st.data())
def test_a_distance_knows_no_scale_and_no_order(n, scale, seed, data):
    m = data.draw(st.integers(1, n))
    Q, R = orthonormal(n, m, seed), orthonormal(n, m, seed + 1)
    values = torch.rand(2, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
    values[:, data.draw(st.integers(0, m)) :] = 0
    distance = weighted_subspace_distance(Q, R, *values)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    again = weighted_subspace_distance(-Q[:, order], R, values[0, order] * scale, values[1])
    # Below 1e-308 the values themselves have few digits.
    torch.testing.assert_close(again, distance, rtol=0, atol=1e-12 if scale > TINY else 1e-3)
    assert 0 <= distance <= 1


@given(st.sampled_from(DTYPES), st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2**32))
def test_signs_are_a_function_of_the_line(dtype, rows, columns, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    V = torch.randint(-2, 3, (batch, rows, columns), generator=generator).to(dtype)  # ties and rows of zeros among them
    fixed = fix_signs(V)
    assert torch.equal(fixed, fix_signs(-V))
    assert torch.equal(fixed.abs(), V.abs())
    assert (fixed.gather(-1, V.abs().argmax(-1, keepdim=True)) >= 0).all() if columns else fixed.shape == V.shape
