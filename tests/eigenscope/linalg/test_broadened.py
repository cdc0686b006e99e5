import pytest
import torch

from eigenscope.linalg import gram_svd
from eigenscope.linalg.broadened import broadened_eigh


def symmetric(values, seed=0):
    n = len(values)
    Q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return Q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ Q.mT


def gauge_free(A, eigh):
    """A function of values and vectors that the vectors' signs do not change."""
    values, vectors = eigh((A + A.mT) / 2)
    weights = torch.arange(1.0, len(values) + 1, dtype=A.dtype)
    return ((vectors * weights) @ vectors.mT)[0, 1] + values.pow(2) @ weights


def test_gradient_is_torchs_where_eigenvalues_are_apart():
    A = symmetric([0.3, 1.0, 1.7, 4.0]).requires_grad_()
    (ours,) = torch.autograd.grad(gauge_free(A, broadened_eigh), A)
    (torchs,) = torch.autograd.grad(gauge_free(A, torch.linalg.eigh), A)
    torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0], [1.0, 1.0 + 1e-15, 3.0]])
def test_gradient_is_finite_where_they_meet(values):
    A = torch.diag(torch.tensor(values, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(gauge_free(A, broadened_eigh), A)
    assert gradient.isfinite().all()
    (torchs,) = torch.autograd.grad(gauge_free(A, torch.linalg.eigh), A)
    assert values[-1] > 1 or not torchs.isfinite().all()  # what the broadening is for


@pytest.mark.parametrize("vectors", ["right", "both"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_gradient_of_the_gram_svd(shape, vectors):
    A = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gauge_free(A):
        U, S, Vh = gram_svd(A, vectors=vectors)
        weights = torch.arange(1.0, 4, dtype=A.dtype)
        out = (Vh.mT * weights * S[..., None, :]) @ Vh
        return out if U is None else (out, (U * weights) @ Vh)

    assert torch.autograd.gradcheck(gauge_free, (A,))
