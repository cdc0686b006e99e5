import math
from functools import partial
from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eigenscope.optim import REKLS, SOAP, CosineAnnealingLR, LinearLR, Muon, OneCycleLR, PolynomialLR, SplitOptimizer
from eigenscope.optim.eigenbases.rotation import eigenbasis, measure_rotation
from eigenscope.optim.eigenbases.spike_detector import SpikeDetector
from eigenscope.optim.schedules import run_length

KINDS = st.sampled_from((Muon, SOAP, REKLS))
SIDES = st.integers(1, 9)
FEW = settings(max_examples=max(1, settings.default.max_examples // 3))


def gradients(m, n, steps, seed, kind="full"):
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(steps, m, n, generator=generator)
    return G[:, :, :1] @ G[:, :1, :] if kind == "rank one" else G * (kind != "zero")


def stepped(optimizer_class, grads, dtype=torch.float32, **options):
    """The weights, which begin at one, after steps with these gradients, and the optimizer."""
    weight = nn.Parameter(torch.ones(grads.shape[1:], dtype=dtype))
    optimizer = optimizer_class([weight], **options)
    for gradient in grads:
        weight.grad = gradient.to(dtype)
        optimizer.step()
    return weight.detach(), optimizer


@given(SIDES, SIDES, st.integers(-126, 120), st.sampled_from(("full", "rank one")), st.integers(0, 2**32))
def test_muons_update_knows_no_scale(m, n, exponent, kind, seed):
    grads = gradients(m, n, 2, seed, kind)
    usual, _ = stepped(Muon, grads, lr=0.1)
    scaled, _ = stepped(Muon, grads * 2.0**exponent, lr=0.1)
    # Powers of two change no digit, but at the lower end, where momentum has 19 bits left, each to be magnified by up
    # to 3.44 in five iterations.
    if exponent >= -90:
        assert torch.equal(scaled, usual)
    else:
        torch.testing.assert_close(scaled, usual, rtol=0, atol=2e-2)


@FEW
@given(KINDS, SIDES, SIDES, st.sampled_from((0.0, 0.1)), st.sampled_from((0.0, 0.5)), st.integers(1, 3))
def test_without_a_gradient_there_is_weight_decay_and_without_a_rate_nothing(kind, m, n, lr, decay, steps):
    zeros = torch.zeros(steps, m, n)
    weight, _ = stepped(kind, zeros, lr=lr, weight_decay=decay)
    torch.testing.assert_close(weight, torch.full_like(weight, (1 - lr * decay) ** steps), rtol=1e-6, atol=0)
    weight, _ = stepped(kind, zeros + 1, lr=0.0, weight_decay=decay)
    assert (weight == 1).all()


@FEW
@given(
    KINDS,
    SIDES,
    SIDES,
    st.sampled_from((1e-44, 1e-38, 1e-20, 1e-8, 1.0, 1e8, 1e14)),
    st.sampled_from((torch.bfloat16, torch.float32, torch.float64)),
    st.sampled_from(("full", "rank one", "zero")),
    st.integers(0, 2**32),
)
def test_steps_are_finite_and_independent_of_what_is_around(kind, m, n, scale, dtype, rank, seed):
    grads = gradients(m, n, 3, seed, rank) * scale
    weight, optimizer = stepped(kind, grads, dtype, lr=0.1)
    assert weight.isfinite().all()
    assert (weight - 1).abs().max() < 3  # a few steps of 0.1, each entry of at most √(m n), as Adam's are of about 1
    assert weight.dtype == dtype
    (state,) = optimizer.state.values()
    assert {x.dtype for x in state.values() if isinstance(x, torch.Tensor)} == {torch.float32}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(stepped(kind, grads, dtype, lr=0.1)[0], weight)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [SOAP, REKLS])
def test_below_eps_updates_are_in_proportion_as_adams(kind):
    grads = gradients(6, 4, 1, 0)
    small, smaller = ((stepped(kind, grads * g, lr=1e6, weight_decay=0.0)[0] - 1) / g for g in (1e-15, 1e-17))
    torch.testing.assert_close(small, smaller, rtol=1e-2, atol=0.1 * small.abs().max().item() * 1e-2)


@given(st.sampled_from((1e-20, 1e-6, 0.1)), st.integers(0, 2**32))
@FEW
def test_clipped_updates_have_at_most_the_stated_rms(limit, seed):
    weight = nn.Parameter(torch.zeros(5, 3))
    optimizer = SOAP([weight], lr=1.0, weight_decay=0.0, max_update_rms=limit)
    weight.grad = gradients(5, 3, 1, seed)[0]
    optimizer.step()
    assert weight.detach().double().square().mean().sqrt().item() == pytest.approx(limit, rel=1e-5)


@pytest.mark.parametrize("kind", [Muon, SOAP, REKLS])
def test_what_is_no_dense_real_matrix_is_left_alone_or_refused(kind):
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert stepped(kind, torch.ones(2, *shape))[0].shape == shape
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(ValueError, match=f"params of {kind.__name__} must be real, got parameter w of {dtype}"):
            kind([("w", torch.zeros(3, 3, dtype=dtype))])
    weights = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    weights[0].grad, weights[1].grad = torch.ones(3, 3), torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match=f"gradients of {kind.__name__} must be dense, got torch.sparse_coo"):
        kind(weights).step()
    assert (weights[0] == 1).all()  # refused before any is changed


@pytest.mark.parametrize("eps", [0.0, 1e-45, math.inf])
def test_an_eps_that_would_divide_by_zero(eps):
    for kind in (SOAP, REKLS):
        with pytest.raises(ValueError, match=r"eps must be a finite number >= 1\.18e-38"):
            kind([nn.Parameter(torch.ones(2, 2))], eps=eps)


def test_a_split_takes_any_parameter_to_where_it_can_be_stepped():
    shapes = {"w": (1, 1), "empty": (0, 4), "bias": (3,), "unused": (2, 2)}
    weights = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    weights["complex"] = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    optimizer = SplitOptimizer(weights.items(), partial(Muon, lr=0.1), partial(torch.optim.AdamW, lr=0.1))
    assert {route.name: (route.optimizer, route.reason) for route in optimizer.routes} == {
        "w": ("Muon", "matrix"),
        "empty": ("Muon", "matrix"),
        "unused": ("Muon", "matrix"),
        "bias": ("AdamW", "1-D"),
        "complex": ("AdamW", "complex64"),
    }
    optimizer.step()
    assert all((weight == 1).all() for weight in weights.values())
    for name in ("w", "empty", "complex"):
        weights[name].grad = torch.ones_like(weights[name])
    optimizer.step()
    changed = {name for name, weight in weights.items() if (weight != 1).any()}
    assert changed == {"w", "complex"}


SCHEDULES = {
    OneCycleLR: {"max_lr": 1.0},
    CosineAnnealingLR: {},
    LinearLR: {"start_factor": 1.0, "end_factor": 0.1},
    PolynomialLR: {},
}


@given(st.sampled_from(tuple(SCHEDULES)), st.integers(0, 40))
def test_schedules_of_any_length_end_with_the_run(schedule, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with run_length(lambda: steps):
        scheduler = schedule(optimizer, **SCHEDULES[schedule])
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - (schedule is OneCycleLR)):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert all(-1e-12 <= rate <= 1 + 1e-12 for rate in rates)
    last = {OneCycleLR: 4e-6, LinearLR: 0.1}.get(schedule, 0)
    assert not steps or rates[-1] == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length", [0, -1])
def test_a_stated_length_without_a_step_is_refused(schedule, length):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = schedule.length_name
    with pytest.raises(ValueError, match=f"{schedule.__name__} must have {name} of at least 1, got {length}"):
        schedule(optimizer, **SCHEDULES[schedule], **{name: length})


NORMS = st.one_of(st.sampled_from((0.0, 1.0, 1e-45, 1e308, math.nan, math.inf)), st.floats(0, 100))


@given(st.lists(NORMS, max_size=80), st.sampled_from((1.5, 10.0, 1e300)))
def test_spikes_are_what_exceeds_a_median_above_zero(norms, factor):
    detector, seen, inside = SpikeDetector(factor), [], False
    for norm in norms:
        found = detector.update(norm)
        if math.isfinite(norm):
            usual = median(seen[-50:]) if len(seen) >= 10 else 0
            above = usual > 0 and norm / factor > usual
            if abs(norm / factor - usual) > 1e-9 * usual:  # not a matter of the last digit
                assert found == (above and not inside)
            inside = above
            seen.append(norm)
        else:
            assert not found


@given(st.integers(1, 6), st.sampled_from((1e-300, 1e-200, 1e-30, 1e30, 1e200)), st.integers(0, 2**32))
def test_a_rotation_knows_no_scale(n, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    A, B = (X @ X.mT for X in torch.randn(2, n, n, dtype=torch.float64, generator=generator))
    bases = [eigenbasis(X * s, torch.linalg.eigh(X).eigenvectors) for s in (1.0, scale) for X in (A, B)]
    for usual, scaled in zip(measure_rotation(*bases[:2], 1), measure_rotation(*bases[2:], 1), strict=True):
        torch.testing.assert_close(scaled, usual, rtol=1e-9, atol=1e-9)
