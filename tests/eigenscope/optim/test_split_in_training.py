"""What others do with an optimizer, done with a split one."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from eigenscope.optim import REKLS, SOAP, Muon, SplitOptimizer


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 6))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 5, generator=generator) for _ in range(count)]


def split(net, matrix=SOAP, other=AdamW, **arguments):
    return SplitOptimizer(net.named_parameters(), matrix, other, **arguments)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("other", [AdamW, partial(AdamW, fused=True)])
def test_a_gradient_scaler_changes_nothing_and_skips_what_overflows(other):
    plain, scaled = network(), network()
    one, other = split(plain, other=other), split(scaled, other=other)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=100)
    data = batches(4)
    for number, x in enumerate(data):
        if number != 2:
            one.zero_grad()
            plain(x).square().mean().backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            one.step()
        before = copy.deepcopy(scaled)
        other.zero_grad()
        scaler.scale(scaled(x).square().mean()).backward()
        if number == 2:
            scaled[2].bias.grad[0] = float("inf")  # of the rest, and the matrices are left alone too
        scaler.unscale_(other)
        nn.utils.clip_grad_norm_(scaled.parameters(), 0.5)
        scaler.step(other)
        scaler.update()
        assert equal(scaled, before) == (number == 2)
    assert scaler.get_scale() == 2.0**7
    assert equal(plain, scaled)


@pytest.mark.parametrize("matrix", [SOAP, REKLS, Muon])
def test_accumulated_gradients_are_those_of_the_whole_batch(matrix):
    # Square weights: a factor of a long one is singular at first, and any basis of its kernel is an eigenbasis. Adam
    # makes steps of full size out of rounding where eps is as small.
    whole = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    parts = copy.deepcopy(whole)
    if matrix is not Muon:
        matrix = partial(matrix, eps=1e-3)
    one, other = (split(net, matrix, partial(AdamW, eps=1e-3), lr=1e-3) for net in (whole, parts))
    for x in torch.randn(4, 16, 5, generator=torch.Generator().manual_seed(1)):
        one.zero_grad()
        whole(x).square().mean().backward()
        one.step()
        other.zero_grad(set_to_none=False)
        for half in x.chunk(2):
            (parts(half).square().mean() / 2).backward()
        other.step()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("matrix", [SOAP, REKLS, Muon])
def test_one_cycle_turns_rate_and_momentum_of_both(matrix):
    net = network()
    optimizer = split(net, matrix)
    schedule = OneCycleLR(optimizer, 0.1, total_steps=8, base_momentum=0.6)
    seen = []
    for x in batches(7):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        seen.append([(group["lr"], group["betas"][0]) for group in optimizer.param_groups])
        schedule.step()
    assert all(first == second for first, second in seen)
    momenta = [first[1] for first, _ in seen]
    assert min(momenta) < 0.65 < 0.9 < max(momenta)
    assert len({first[0] for first, _ in seen}) == 7


def test_torch_refuses_to_cycle_a_momentum_that_one_has_not():
    with pytest.raises(ValueError, match="must support momentum"):
        OneCycleLR(split(network(), partial(SGD, momentum=0.9)), 0.1, total_steps=8)
    OneCycleLR(split(network(), partial(SGD, momentum=0.9)), 0.1, total_steps=8, cycle_momentum=False)


def test_schedules_follow_the_ratio_of_the_rates():
    optimizer = split(network(), partial(SOAP, lr=0.2), partial(AdamW, lr=0.4))
    cosine = CosineAnnealingLR(optimizer, 4)
    for _ in range(2):
        optimizer.step()
        cosine.step()
    assert rates(optimizer) == pytest.approx([0.1, 0.2])
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(2):
        plateau.step(1.0)
    assert rates(optimizer) == pytest.approx([0.05, 0.1])
    restored = split(network())
    restored.load_state_dict(optimizer.state_dict())
    assert rates(restored) == pytest.approx([0.05, 0.1])


def test_hooks_run_once():
    net = network()
    optimizer = split(net)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before step"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after step"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before step", "after step", "saved", "loading", "loaded"]


def test_zero_grad_reaches_both():
    net = network()
    optimizer = split(net)
    net(batches(1)[0]).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in net.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
