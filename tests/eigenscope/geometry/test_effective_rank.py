import pytest
import torch

from eigenscope.geometry import effective_rank


def test_values():
    S = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = (4 / 3) ** 0.75 * 4**0.25  # exp(−Σ p log p) of 3/4 and 1/4
    torch.testing.assert_close(effective_rank(S), torch.tensor([expected, 0.0], dtype=torch.float64))
    assert effective_rank(S.half()).dtype == torch.float32
    assert effective_rank(torch.tensor([1.0, torch.nan])).isnan()


def test_gradients():
    S = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.autograd.gradcheck(effective_rank, (S.requires_grad_(),))
    zeros = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    effective_rank(zeros).sum().backward()
    assert zeros.grad.isfinite().all()
    assert (zeros.grad[0, :2] != 0).all()
    assert (zeros.grad[1] == 0).all()


@pytest.mark.parametrize("S", [torch.ones(()), torch.ones(2, 0), torch.ones(3, dtype=torch.int64)])
def test_bad_input(S):
    with pytest.raises(ValueError, match="S must be real spectra"):
        effective_rank(S)
