import math

import pytest
import torch

from eigenscope.nn.autoencoders.companding import SCALES, compand, expand
from eigenscope.noise import draw_noise
from eigenscope.noise.distributions import NOISE_DISTRIBUTIONS


def test_the_scale_is_the_median_magnitude():
    assert compand(torch.tensor([4.0, -1.0, 2.0, 3.0])).log_scale == math.log(2)  # the lower of two
    u, log_scale = compand(torch.tensor([[-3.0, 1.0, 2.0], [0.5, -40.0, 4.0]]))
    torch.testing.assert_close(log_scale, torch.tensor([2.0, 4.0]).log())
    torch.testing.assert_close(u, torch.tensor([[-1.5, 0.5, 1.0], [0.125, -10.0, 1.0]]).asinh())


@pytest.mark.parametrize(("size", "scale"), [(0.0, SCALES[0]), (1e-6, SCALES[0]), (1e7, SCALES[1])])
def test_the_scale_has_bounds(size, scale):
    _, log_scale = compand(torch.full((2, 3, 12), size))
    torch.testing.assert_close(log_scale, torch.full((2, 3), math.log(scale)))


def test_every_noise_type_comes_back():
    types = torch.arange(len(NOISE_DISTRIBUTIONS))
    x = draw_noise(types, seed=0, epoch=0, samples=types, image_size=16).flatten(2)
    u, log_scale = compand(x)
    assert u.shape == x.shape
    assert log_scale.shape == x.shape[:-1]
    assert u.abs().max() < 30
    torch.testing.assert_close(expand(u, log_scale), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-5, 1.0, 1e7, 1e30])
def test_a_round_trip_at_any_magnitude(size):
    x = size * torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(expand(*compand(x)), x, rtol=2e-5, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e7, 1e30])
def test_gradients_are_finite(size):
    x = torch.ones(2, 12)
    x[0, 0] = size
    x[1] = size
    x.requires_grad_()
    u, log_scale = compand(x)
    (u.sum() + log_scale.sum()).backward()
    assert x.grad.isfinite().all()


def test_no_decoder_can_overflow():
    u = torch.tensor([-math.inf, -1e4, -90.0, 0.0, 90.0, 1e4, math.inf])
    for scale in SCALES:
        x = expand(u, torch.tensor(scale).log())
        assert x.isfinite().all()
        assert (x.sign() == u.sign()).all()
    assert expand(torch.tensor([math.nan]), torch.tensor(0.0)).isnan()


def test_half_precision_is_computed_in_float32():
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    u, log_scale = compand(x)
    assert u.dtype == log_scale.dtype == torch.float32
    assert torch.equal(u, compand(x.float()).values)
    assert expand(u.bfloat16(), log_scale).dtype == torch.float32
    assert compand(x.double()).values.dtype == torch.float64
