import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from eigenscope.nn.autoencoders.variational import (
    LOG_VARIANCES,
    active_dimensions,
    bounded_log_variance,
    free_bits,
    has_collapsed,
    kl_divergence,
    kl_weight,
    reparameterise,
    standard_normal,
)
from eigenscope.noise.streams import Streams, stream_key


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kl_is_that_of_the_distributions():
    mu, log_variance = 3 * numbers(5, 7), 2 * numbers(5, 7, seed=1)
    expected = reference_kl(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mu, log_variance), expected)
    assert torch.equal(kl_divergence(torch.zeros(3), torch.zeros(3)), torch.zeros(3))


def test_kl_of_a_posterior_near_the_prior_is_not_lost():
    log_variance = torch.tensor([1e-3])
    expected = kl_divergence(torch.zeros(1, dtype=torch.float64), log_variance.double())
    torch.testing.assert_close(kl_divergence(torch.zeros(1), log_variance).double(), expected, rtol=1e-3, atol=0)


def test_draws_have_the_moments_of_the_posterior():
    mu, log_variance = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([-4.0, 0.0, 2.0])
    z = reparameterise(mu.expand(40_000, 3), log_variance.expand(40_000, 3), torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), mu, rtol=0, atol=0.05)
    torch.testing.assert_close(z.var(0).log(), log_variance, rtol=0, atol=0.05)


def test_draws_come_from_the_generator_given_or_the_global_one():
    mu, log_variance = numbers(4, 3), numbers(4, 3)
    first, second, third = (reparameterise(mu, log_variance, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    torch.manual_seed(0)
    assert torch.equal(reparameterise(mu, log_variance), first)


def test_draws_are_differentiable():
    mu, log_variance = numbers(4).requires_grad_(), numbers(4, seed=1).requires_grad_()
    z = reparameterise(mu, log_variance, torch.Generator().manual_seed(0))
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(4))
    torch.testing.assert_close(log_variance.grad, (z - mu).detach() / 2)


def test_log_variances_stay_in_bounds_and_can_return():
    raw = torch.tensor([-1e6, -100.0, -8.0, -2.0, 4.0, 100.0, 1e6], requires_grad=True)
    bounded = bounded_log_variance(raw)
    assert bounded.min() >= LOG_VARIANCES[0]
    assert bounded.max() <= LOG_VARIANCES[1]
    assert (bounded.diff() > 0).all()
    bounded.sum().backward()
    assert raw.grad[3] == 1
    assert (raw.grad > 0).all()


def test_free_bits_are_a_floor_of_the_batch_mean():
    kl = torch.tensor([[[0.0, 0.2], [0.0, 0.0]], [[0.04, 0.0], [0.0, 0.4]]], requires_grad=True)  # means 0.01, 0.15
    free = free_bits(kl, 0.05)
    torch.testing.assert_close(free, torch.tensor([0.05, 0.15]))
    free.sum().backward()
    assert (kl.grad[..., 0] == 0).all()
    assert (kl.grad[..., 1] == 0.25).all()  # of the samples below the floor too
    torch.testing.assert_close(free_bits(kl, 0.0), torch.tensor([0.01, 0.15]))


def test_warm_up_is_linear():
    assert [kl_weight(step, 0.5, 4) for step in (0, 1, 2, 4, 5, 1000)] == [0.0, 0.125, 0.25, 0.5, 0.5, 0.5]
    assert kl_weight(0, 0.5, 0) == 0.5


def test_active_dimensions_exceed_the_threshold_in_the_mean():
    kl = torch.tensor([[0.3, 0.06, 0.0], [0.0, 0.04, 5.0]])
    assert active_dimensions(kl).tolist() == [True, False, True]
    assert active_dimensions(kl.mean(0)).tolist() == [True, False, True]
    assert active_dimensions(kl, 0.04).all()


@pytest.mark.parametrize(("active", "collapsed"), [(0, True), (7, True), (8, False), (16, False)])
def test_collapse_is_less_than_half_of_the_dimensions(active, collapsed):
    assert has_collapsed(torch.arange(16) < active) is collapsed


@pytest.mark.parametrize("floor", [-0.1, math.inf, math.nan])
def test_free_bits_are_checked(floor):
    with pytest.raises(ValueError, match=f"floor must be a finite number >= 0, got {floor}"):
        free_bits(torch.ones(2, 3), floor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0.1, 10), "step must be at least 0, got -1"),
        ((0, -0.1, 10), "beta must be at least 0, got -0.1"),
        ((0, math.nan, 10), "beta must be at least 0, got nan"),
        ((0, 0.1, -5), "warmup_steps must be at least 0, got -5"),
    ],
)
def test_the_warm_up_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        kl_weight(*arguments)


def test_a_stream_for_each_sample_does_not_know_its_batch():
    key, places = stream_key(3), torch.tensor([5, 2, 9])
    mu, log_variance = numbers(3, 4, 2, 8), numbers(3, 4, 2, 8, seed=1)
    z = reparameterise(mu, log_variance, Streams(key, places))
    for number, place in enumerate(places):
        alone = reparameterise(mu[number, None], log_variance[number, None], Streams(key, place[None]))
        assert torch.equal(alone[0], z[number])
    noise = standard_normal((2000, 4, 8), mu.double(), Streams(key, torch.arange(2000)))
    assert noise.dtype == torch.float64
    assert abs(float(noise.mean())) < 5 / 64_000**0.5
    assert abs(float(noise.square().mean()) - 1) < 5 * (2 / 64_000) ** 0.5
    with pytest.raises(ValueError, match="a stream for each of 3 samples, got 2"):
        reparameterise(mu, log_variance, Streams(key, places[:2]))


def test_free_bits_compare_the_mean_of_the_larger_batch():
    parts = [torch.tensor([[0.0, 0.2, 0.3]], requires_grad=True), torch.tensor([[0.4, 0.0, 0.1]], requires_grad=True)]
    whole = torch.cat([part.detach() for part in parts]).requires_grad_()
    free_bits(whole, 0.15).sum().backward()
    mean = whole.detach().mean(0)
    losses = [free_bits(part, 0.15, mean) for part in parts]
    torch.testing.assert_close((losses[0] + losses[1]) / 2, free_bits(whole, 0.15))
    (torch.stack(losses).sum() / 2).backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)
