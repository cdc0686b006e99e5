import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.linalg import LinAlgError
from torch.utils._python_dispatch import TorchDispatchMode

from eigenscope.linalg import gram_svd
from tests.dtypes import default_dtype

drawn = runpy.run_path(str(Path(__file__).with_name("matrices.py")))
matrices, with_spectrum = drawn["matrices"], drawn["with_spectrum"]
VECTORS = st.sampled_from(("right", "both", "none"))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(
    matrices(DTYPES), VECTORS, st.sampled_from((None, torch.float64)), st.sampled_from((torch.float32, torch.float64))
)
def test_factors_are_those_of_the_matrix(case, vectors, compute_dtype, default):
    A, out = case.A, torch.promote_types(case.A.dtype, torch.float32)
    with default_dtype(default), torch.autocast("cpu", dtype=torch.bfloat16):
        U, S, Vh = gram_svd(A, vectors=vectors, compute_dtype=compute_dtype)
    assert {x.dtype for x in (U, S, Vh) if x is not None} == {out}
    assert [x is None for x in (U, Vh)] == [vectors != "both", vectors == "none"]
    m, n, r = *A.shape[-2:], min(A.shape[-2:])
    eps = torch.finfo(out).eps
    B = A.double()
    largest = B.abs().amax((-2, -1), keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    B, s = B / largest, S.double() / largest[..., 0]
    exact = torch.linalg.svdvals(B)
    # Of the Gram matrix: the sums' rounding, at most max(m, n) eps |B|ᵀ|B|, and the eigensolver's, a few r eps, both
    # relative to the squared norm. S itself is rounded last, to no less than the smallest subnormal number.
    norm = torch.linalg.matrix_norm(B)[..., None]
    error = (max(m, n) + 10 * r) * eps * norm.square()
    last = 2 * eps * s + 2 * torch.finfo(out).smallest_normal * eps / largest[..., 0]
    assert ((s - exact) * (s + exact)).abs().le(error + last * (s + exact)).all()
    assert (s >= 0).all()
    assert (s.diff() <= 0).all()
    for vectors_ in (U, None if Vh is None else Vh.mT):
        if vectors_ is not None:
            inner = vectors_.double().mT @ vectors_.double()
            assert (inner - torch.eye(r)).abs().le(20 * max(m, n) * eps).all()
    if vectors == "both":  # small values are noise of the size of the root of that error
        rebuilt = (U.double() * s[..., None, :]) @ Vh.double()
        assert torch.linalg.matrix_norm(rebuilt - B).le((r * error.sqrt() + r * last.amax(-1, True))[..., 0]).all()


@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from((torch.float16, torch.float32, torch.float64)),
    VECTORS,
    st.sampled_from((float("nan"), float("inf"), -float("inf"))),
    st.data(),
)
def test_one_entry_that_is_not_finite_is_refused_and_never_a_zero(m, n, dtype, vectors, bad, data):
    A = torch.randn(2, m, n, generator=seeded(m)).to(dtype)
    A[1, data.draw(st.integers(0, m - 1)), data.draw(st.integers(0, n - 1))] = bad
    for given_ in (A, A.clone().requires_grad_()):
        with pytest.raises(LinAlgError, match="A must be finite, got a matrix with NaN or infinity"):
            gram_svd(given_, vectors=vectors)

    def factors(A):
        return tuple(x for x in gram_svd(A, vectors=vectors) if x is not None)

    mapped = torch.func.vmap(factors)(A)  # nothing can be looked at here
    for alone, both in zip(factors(A[0]), mapped, strict=True):
        assert both[0].isfinite().all()
        assert both[0].shape == alone.shape
        assert both[1].isnan().all()
    torch.testing.assert_close(mapped[vectors == "both"][0], gram_svd(A[0], vectors=vectors).S, rtol=0, atol=1e-2)


@given(matrices(DTYPES, longest=24), VECTORS)
def test_gradients_are_finite_and_zero_where_there_is_none(case, vectors):
    A = case.A.clone().requires_grad_()
    _, S, _ = svd = gram_svd(A, vectors=vectors)
    (of_values,) = torch.autograd.grad(S.sum(), A, retain_graph=True)
    norms = torch.linalg.matrix_norm(of_values.double())
    assert norms.le(min(A.shape[-2:]) ** 0.5 * (1 + 1e-3)).all()  # of a nuclear norm's
    if case.scale >= 1e-30:  # a vector's gradient is as large as 1 / σ
        weighted = sum((x * torch.arange(1.0, x.shape[-1] + 1)).sum() for x in svd if x is not None)
        (of_all,) = torch.autograd.grad(weighted, A)
        assert of_all.isfinite().all()
        assert case.kind != "zero" or (of_all == 0).all()


@given(
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from((0.0, 1e-12, 0.3)),
    st.booleans(),
    st.sampled_from((1e-20, 1.0, 1e20)),
    st.integers(0, 2**32),
)
def test_gradients_of_leading_parts_are_derivatives(k, others, longer, wide, rest, equal, scale, seed):
    # The k leading values are apart from the others, which are zero, noise or equal; among themselves they are equal or
    # not. Their sum, the span of their vectors and U Vᵀ of them are smooth there.
    generator = seeded(seed)
    short = k + others
    shape = (short, short + longer) if wide else (short + longer, short)
    values = torch.cat([torch.full((k,), 2.0) if equal else torch.arange(k + 1.0, 1, -1), torch.full((others,), rest)])
    A = with_spectrum(*shape, values, generator)
    weights = [
        torch.randn(s, dtype=torch.float64, generator=generator) for s in (shape, (shape[1],) * 2, (shape[0],) * 2)
    ]

    def smooth(U, S, Vh):
        U, S, Vh = U[:, :k], S[:k], Vh[:k]
        return (
            S.sum()
            + (weights[0] * (U @ Vh)).sum()
            + (weights[1] * (Vh.mT @ Vh)).sum()
            + (weights[2] * (U @ U.mT)).sum()
        )

    def ours(A, scale=1.0):
        U, S, Vh = gram_svd(A, vectors="both")
        return smooth(U, S / scale, Vh)

    point = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours(point), point)
    direction = torch.randn(shape, dtype=torch.float64, generator=generator)
    step = 1e-5
    ahead, behind = (smooth(*torch.linalg.svd(A + h * direction, full_matrices=False)) for h in (step, -step))
    size = gradient.norm() * direction.norm() + 1
    # Third derivatives are about (1 / gap)³, the values' rounding eps / step.
    assert ((gradient * direction).sum() - (ahead - behind) / (2 * step)).abs() < 1e-7 * size
    single = (A * scale).float().requires_grad_()
    (rough,) = torch.autograd.grad(ours(single, scale), single)
    exact = single.detach().double().requires_grad_()
    (fine,) = torch.autograd.grad(ours(exact, scale), exact)
    # w / gap squared is eps over the square of the gap, 1 of 4, and the Gram matrix knows the vectors to as much.
    assert (rough * scale - fine * scale).norm() < 100 * shape[0] * shape[1] * 2**-23 * ((fine * scale).norm() + 1)


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vectors", ["right", "both", "none"])
def test_the_host_looks_at_the_matrices_once_and_at_the_gradient_never(vectors):
    A = torch.randn(3, 9, 5, generator=seeded(0), requires_grad=True)
    with Waits() as waits:
        S = gram_svd(A, vectors=vectors).S
    assert waits.count == 1
    with Waits() as waits:
        S.sum().backward()
    assert waits.count == 0


def test_compiled_in_inference_mode_and_on_meta_tensors():
    vectors = "both"
    A = torch.randn(3, 9, 5, generator=seeded(0))
    plain = gram_svd(A, vectors=vectors)
    compiled = torch.compile(lambda A: gram_svd(A, vectors=vectors), backend="eager", fullgraph=True)
    with torch.inference_mode():
        inside = gram_svd(A, vectors=vectors)
    meta = gram_svd(A.to("meta"), vectors=vectors)
    point = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(gram_svd(point, vectors=vectors).S.square().sum(), point)
    (traced,) = torch.autograd.grad(compiled(point).S.square().sum(), point)
    torch.testing.assert_close(gradient, 2 * A)  # Σ σ² is the squared norm
    assert torch.equal(gradient, traced)
    for ours, *others in zip(plain, compiled(A), inside, meta, strict=True):
        if ours is not None:
            assert torch.equal(ours, others[0])
            assert torch.equal(ours, others[1])
            assert ours.shape == others[2].shape
