import pytest
import torch
from torch.autograd import forward_ad

from eigenscope.linalg import gram_svd


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("vectors", ["right", "both", "none"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_gradients_of_single_values_and_vectors(shape, vectors):
    A = random(2, *shape, seed=1).requires_grad_()

    def gauge_free(A):
        U, S, Vh = gram_svd(A, vectors=vectors)
        if Vh is None:
            return S
        weights = torch.arange(1.0, 4, dtype=A.dtype)
        out = (Vh.mT * weights * S[..., None, :]) @ Vh
        return out if U is None else (out, (U * weights) @ Vh)

    assert torch.autograd.gradcheck(gauge_free, (A,))


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
