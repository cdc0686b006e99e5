import copy
import math
import pickle

import pytest
import torch
from emerging_optimizers.orthogonalized_optimizers import Muon as LibraryMuon
from emerging_optimizers.orthogonalized_optimizers import muon_utils
from torch import nn

from eigenscope.optim import Muon, muon

SHAPES = [(6, 4), (4, 9)]


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
    return optimizer.param_groups[0]["params"]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("steps", "rms", "decay"), [(5, 0.2, 0.01), (3, 1.0, 0.0)])
def test_steps_as_the_library(nesterov, steps, rms, decay):
    ours = Muon(weights(), 0.1, (0.8,), decay, nesterov=nesterov, num_ns_steps=steps, update_rms=rms)
    theirs = LibraryMuon(
        weights(),
        0.1,
        0.8,
        decay,
        nesterov=nesterov,
        fp32_matmul_prec="highest",
        num_ns_steps=steps,
        extra_scale_factor=rms,
    )
    for a, b in zip(train(ours, 4), train(theirs, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_an_update_has_the_stated_rms_and_nearly_equal_singular_values():
    (weight,) = weights()[:1]
    before = weight.detach().clone()
    optimizer = Muon([weight], 1.0, weight_decay=0.0)
    weight.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    update = before - weight.detach()
    # Jordan's coefficients leave singular values between 0.68 and 1.13
    assert 0.68 * 0.2 < update.square().mean().sqrt() < 1.14 * 0.2
    values = torch.linalg.svdvals(update) / (0.2 * math.sqrt(6))
    assert values.min() > 0.65
    assert values.max() < 1.15


def test_precision_is_the_iterations_alone():
    exact, rough = train(Muon(weights()), 3), train(Muon(weights(), fp32_matmul_prec="medium"), 3)
    assert all(not torch.equal(a, b) for a, b in zip(exact, rough, strict=True))
    for a, b in zip(exact, rough, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_one_cycle_schedule_cycles_its_momentum():
    optimizer = Muon(weights(), 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, base_momentum=0.6)
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["betas"])
        train(optimizer, 1)
        schedule.step()
    assert all(len(betas) == 1 for betas in seen)
    assert min(seen) < (0.7,) < seen[0]
    slow, fast = (train(Muon(weights(), 0.1, (beta,)), 3) for beta in (0.6, 0.95))
    assert not torch.equal(slow[0], fast[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_goes_on_bit_for_bit(dtype):
    whole = Muon(weights(dtype))
    resumed = Muon([nn.Parameter(p.detach().clone()) for p in train(whole, 3)], 9.0)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert {state["momentum_buffer"].dtype for state in resumed.state.values()} == {torch.float32}
    for a, b in zip(train(resumed, 2, 5), train(whole, 2, 5), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_steps_alike(copied):
    optimizer = Muon(weights())
    train(optimizer, 2)
    twin = copied(optimizer)
    for a, b in zip(train(twin, 2, 3), train(optimizer, 2, 3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1.0),
        ("weight_decay", float("inf")),
        ("update_rms", -0.2),
        ("betas", (0.9, 0.95)),
        ("betas", (1.0,)),
        ("num_ns_steps", 0),
        ("fp32_matmul_prec", "tf32"),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*got"):
        Muon(weights(), **{argument: value})


def test_what_is_not_a_matrix_is_named():
    with pytest.raises(ValueError, match=r"params of Muon must be 2-D, got parameter gain of shape \(3,\)"):
        Muon([("gain", nn.Parameter(torch.ones(3)))])


def test_another_version_of_the_library_is_refused_when_an_optimizer_is_made(monkeypatch):
    monkeypatch.delattr(muon_utils, "newton_schulz")
    muon._library.cache_clear()
    with pytest.raises(ImportError, match=r"is installed, with no \S+muon_utils.newton_schulz; .*>=0.3,<0.4"):
        Muon(weights())
