from functools import partial

import pytest
import torch
from emerging_optimizers.soap import SOAP as LibrarySOAP
from torch import nn
from torch.optim import AdamW

from eigenscope.optim import REKLS, SOAP, Muon, SplitOptimizer, kronecker_factors, preconditioner


def weights():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
    return nn.Parameter(weight), nn.Parameter(bias)


def step(optimizer, *parameters):
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()


@pytest.mark.parametrize("kind", [SOAP, REKLS, partial(LibrarySOAP, lr=0.1)])
def test_factors_are_those_of_the_gradient(kind):
    weight, bias = weights()
    optimizer = kind([weight])
    assert preconditioner(optimizer, weight) is optimizer
    assert preconditioner(optimizer, bias) is None
    assert kronecker_factors(optimizer, weight) is None
    assert len(optimizer.state) == 0
    step(optimizer, weight)
    factors = kronecker_factors(optimizer, weight)
    assert all(value is optimizer.state[weight][name] for name, value in factors._asdict().items())
    gradient = weight.grad.double()
    expected = {"L": gradient @ gradient.T, "R": gradient.T @ gradient}
    if not isinstance(optimizer, REKLS):  # KL-Shampoo's first factors are these, too, times a constant
        torch.testing.assert_close(factors.L.double(), expected["L"], rtol=0, atol=1e-5)
        torch.testing.assert_close(factors.R.double(), expected["R"], rtol=0, atol=1e-5)
    for Q, A in ((factors.Q_L.double(), expected["L"]), (factors.Q_R.double(), expected["R"])):
        nested = Q.T @ A @ Q
        torch.testing.assert_close(nested, nested.diagonal().diag(), rtol=0, atol=1e-4)


def test_a_split_is_looked_into():
    weight, bias = weights()
    other = nn.Parameter(torch.ones(3, 3))
    named = [("weight", weight), ("b", bias), ("other", other)]
    optimizer = SplitOptimizer(named, SOAP, AdamW, exclude=["other"])
    assert preconditioner(optimizer, weight) is optimizer.matrix
    assert preconditioner(optimizer, other) is None
    assert kronecker_factors(optimizer, weight) is None
    step(optimizer, weight, bias, other)
    assert kronecker_factors(optimizer, weight).R is optimizer.matrix.state[weight]["R"]
    assert kronecker_factors(optimizer, bias) is None
    nested = SplitOptimizer(named, AdamW, partial(SplitOptimizer, matrix=REKLS, other=AdamW), exclude=["weight"])
    assert preconditioner(nested, weight) is nested.other.matrix


def test_an_optimizer_with_the_same_state_counts_as_one_once_it_has_it():
    weight, _ = weights()
    optimizer = AdamW([weight])
    assert preconditioner(optimizer, weight) is None
    optimizer.state[weight] = {name: torch.eye(2) for name in ("L", "R", "Q_L", "Q_R")}
    assert preconditioner(optimizer, weight) is optimizer
    assert preconditioner(Muon([weight]), weight) is None
