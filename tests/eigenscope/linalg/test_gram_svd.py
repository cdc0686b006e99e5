import pytest
import torch
from torch.autograd import forward_ad

from eigenscope.linalg import fix_signs, gram_svd

SHAPES = [(64, 32), (32, 64), (8, 8), (5, 1), (1, 5)]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_agree_with_lapack_and_rebuild_the_matrix(shape):
    A = random(3, 2, *shape)
    U, S, Vh = gram_svd(A, vectors="both")
    torch.testing.assert_close(S, torch.linalg.svdvals(A), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(U @ torch.diag_embed(S) @ Vh, A, atol=1e-10, rtol=0)
    identity = torch.eye(min(shape), dtype=A.dtype).expand(3, 2, -1, -1)
    torch.testing.assert_close(U.mT @ U, identity, atol=1e-10, rtol=0)
    torch.testing.assert_close(Vh @ Vh.mT, identity, atol=1e-10, rtol=0)
    torch.testing.assert_close(gram_svd(A).Vh, Vh)
    torch.testing.assert_close(gram_svd(A, vectors="none").S, S)


def test_what_is_not_asked_for_is_none():
    A = random(4, 3)
    assert gram_svd(A, vectors="right").U is None
    assert gram_svd(A, vectors="none")[::2] == (None, None)


@pytest.mark.parametrize("vectors", ["right", "both", "none"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_rank_deficient_input_is_finite_and_right(shape, rank, vectors):
    A = random(5, shape[0], 4)[..., :rank] @ random(5, 4, shape[1], seed=1)[:, :rank]
    U, S, Vh = gram_svd(A, vectors=vectors)
    torch.testing.assert_close(S, torch.linalg.svdvals(A), atol=1e-6, rtol=1e-7)  # sqrt(eps) of the largest
    for factor in (U, Vh):
        assert factor is None or factor.isfinite().all()
    if vectors == "both":
        torch.testing.assert_close(U @ torch.diag_embed(S) @ Vh, A, atol=1e-6, rtol=0)
        torch.testing.assert_close(U.mT @ U, torch.eye(4, dtype=A.dtype).expand(5, 4, 4), atol=1e-10, rtol=0)
    if rank == 0:
        assert (S == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_underflow(scale):
    A = random(16, 4, dtype=torch.float32)
    torch.testing.assert_close(gram_svd(A * scale).S / scale, torch.linalg.svdvals(A), rtol=1e-4, atol=0)


def test_dtypes():
    A = random(10, 4, dtype=torch.float32)
    assert gram_svd(A.bfloat16()).S.dtype == torch.float32
    assert gram_svd(A, compute_dtype=torch.float64).Vh.dtype == torch.float32
    rotation = torch.linalg.qr(random(4, 4, dtype=torch.float32, seed=1)).Q
    spread = A @ torch.diag(torch.tensor([1.0, 1e-1, 1e-2, 1e-4])) @ rotation
    exact = torch.linalg.svdvals(spread.double())
    error32 = (gram_svd(spread).S - exact).abs() / exact
    error64 = (gram_svd(spread, compute_dtype=torch.float64).S - exact).abs() / exact
    assert error64.max() < 1e-4 < 1e-2 < error32.max()


def test_autocast_does_not_reach_inside():
    A = random(64, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram_svd(A, vectors="both")
    for a, b in zip(inside, gram_svd(A, vectors="both"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("vectors", ["right", "both", "none"])
def test_threads_change_nothing(vectors):
    A = random(3, 100, 9, 6).requires_grad_()  # enough matrices for two threads even inside vmap
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            plain = gram_svd(A, vectors=vectors)
        assert not plain.S.requires_grad
        svd = gram_svd(A, vectors=vectors)
        (gradient,) = torch.autograd.grad(svd.S.pow(3).sum(), A)
        with torch.no_grad():
            tangent = torch.func.jvp(lambda A: gram_svd(A, vectors=vectors).S, (A,), (torch.ones_like(A),))[1]
            mapped = torch.func.vmap(lambda A: gram_svd(A, vectors=vectors).S)(A)
            with forward_ad.dual_level():
                dual = gram_svd(forward_ad.make_dual(A.detach(), torch.ones_like(A)), vectors=vectors).S
                assert torch.equal(forward_ad.unpack_dual(dual).tangent, tangent)
        assert tangent.abs().max() > 0.1
        results.append([*plain, *svd, gradient, tangent, mapped])
    for one, two in zip(*results, strict=True):
        assert one is two is None or torch.equal(one, two)


def test_gradient_of_singular_values():
    A = random(2, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: gram_svd(A, vectors="none").S, (A,))
    zero = torch.zeros(4, 2, requires_grad=True)
    gram_svd(zero, vectors="none").S.sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(
    ("A", "options", "word"),
    [
        (torch.ones(3), {}, "A must"),
        (torch.ones(0, 3), {}, "A must"),
        (torch.ones(3, 3, dtype=torch.int64), {}, "A must"),
        (torch.ones(3, 3), {"vectors": "left"}, "vectors"),
        (torch.ones(3, 3), {"compute_dtype": torch.float16}, "compute_dtype"),
    ],
)
def test_bad_input(A, options, word):
    with pytest.raises(ValueError, match=word):
        gram_svd(A, **options)


def test_fix_signs_is_idempotent_blind_to_signs_and_makes_the_largest_entry_positive():
    V = random(7, 5, 9)
    flipped = V * (random(7, 5, 1, seed=1).sign())
    assert torch.equal(fix_signs(V), fix_signs(flipped))
    assert torch.equal(fix_signs(fix_signs(V)), fix_signs(V))
    assert torch.equal(fix_signs(V).amax(-1), V.abs().amax(-1))
    assert torch.equal(fix_signs(torch.zeros(2, 3)), torch.zeros(2, 3))
