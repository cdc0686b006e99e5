import math

import pytest
import torch
from torch import nn

from eigenscope.nn.autoencoders.companding import compand
from eigenscope.nn.autoencoders.patch_svae import PatchSVAE
from eigenscope.nn.autoencoders.patches import unfold_patches
from eigenscope.nn.autoencoders.simplex_vae import SimplexVAE
from eigenscope.nn.autoencoders.variational import LOG_VARIANCES
from eigenscope.noise import draw_noise

SMALL = {"num_points": 12, "dim": 4, "patch_size": 4, "hidden": 24, "depth": 1, "bottleneck": 20}


def make(**changes):
    torch.manual_seed(0)
    return SimplexVAE(**SMALL | changes)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(net, x):
    reconstructions, code = net(x)
    points = sum(point_set.square().sum() for point_set in code.point_sets.values())
    return (reconstructions - code.companded).square().mean() + code.kl.mean() + points


def test_no_decomposition_and_no_double_precision_in_training(operation_recorder):
    net = make(slots=2)
    with operation_recorder() as seen:
        loss_of(net, images(2, 3, 8, 8)).backward()
    assert "aten::native_layer_norm_backward" in seen.operations  # the backward pass is seen
    assert not seen.decompositions
    assert not seen.dtypes & {torch.float64, torch.complex128}


def test_the_recorder_sees_the_decomposition_of_the_spectral_autoencoder(operation_recorder):
    torch.manual_seed(0)
    net = PatchSVAE(num_points=12, dim=4, patch_size=4, hidden=24, depth=1)
    with operation_recorder() as seen:
        net(images(2, 3, 8, 8))[0].sum().backward()
    assert torch.float64 in seen.dtypes
    assert seen.decompositions


@pytest.mark.parametrize("slots", [1, 3])
def test_shapes_of_images_that_are_not_square(slots):
    net = make(slots=slots)
    x = images(2, 3, 8, 12)
    reconstructions, code = net(x)
    assert reconstructions.shape == code.companded.shape == (2, 6, 48)
    assert code.grid == (2, 3)
    assert code.log_scale.shape == (2, 6)
    assert code.mu.shape == code.log_variance.shape == code.z.shape == (2, 6, slots, 4)
    assert code.kl.shape == (2, 6, slots * 4)
    expected = compand(unfold_patches(x, 4))
    assert torch.equal(code.companded, expected.values)
    assert torch.equal(code.log_scale, expected.log_scale)
    torch.testing.assert_close(net.to_images(code.companded, code.log_scale, code.grid), x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("slots", [1, 3])
def test_sectors_are_complete_and_on_the_sphere(slots):
    assert make().point_set_shapes["mu"] == make(image_size=4).point_set_shapes["z"] == (5, 4)  # the least there is
    net = make(slots=slots, image_size=12)
    _, code = net(images(2, 3, 12, 12))
    assert list(code.point_sets) == list(net.point_set_shapes) == ["M", "bottleneck", "mu", "z", "H", "decoder"]
    for name, points in code.point_sets.items():
        torch.testing.assert_close(points.norm(dim=-1), torch.ones(points.shape[:-1]))
        V, D = net.point_set_shapes[name]
        if name in ("mu", "z"):
            assert points.shape == (1, 2 * 9 * slots, D) == (1, 2 * V, D)
        else:
            assert points.shape == (2, 9, V, D)
    torch.testing.assert_close(code.point_sets["mu"][0, 0], code.mu[0, 0, 0] / code.mu[0, 0, 0].norm())
    torch.testing.assert_close(code.point_sets["z"][0, -1], code.z[-1, -1, -1] / code.z[-1, -1, -1].norm())


def test_training_samples_and_evaluation_does_not():
    net = make()
    x = images(2, 3, 8, 8)
    (first, code), (second, _) = net(x), net(x)
    assert not torch.equal(first, second)
    assert not torch.equal(code.z, code.mu)
    net.eval()
    (first, code), (second, _) = net(x), net.train()(x, sample=False)
    assert torch.equal(first, second)
    assert torch.equal(code.z, code.mu)
    drawn = [net.eval()(x, sample=True, generator=torch.Generator().manual_seed(s))[1].z for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    epsilon = (drawn[0] - code.mu) / (0.5 * code.log_variance).exp()
    torch.testing.assert_close(epsilon, images(*code.mu.shape), rtol=1e-4, atol=1e-5)


def test_the_decoder_is_fed_the_scale():
    net = make()
    z = images(1, 2, 1, 4)
    small, large = (net.decode(z, torch.full((1, 2), s), (1, 2)) for s in (0.0, 1.0))
    assert not torch.allclose(large, math.e * small, rtol=1e-3)


def test_the_latent_does_not_depend_on_magnitude():
    net = make()
    x = images(2, 3, 8, 8)
    code, scaled = net.encode(x), net.encode(64 * x)
    torch.testing.assert_close(scaled.mu, code.mu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled.log_scale, code.log_scale + math.log(64))


@pytest.mark.parametrize("kind", ["zero", "constant", "tiny", "cauchy"])
def test_gradients_reach_everything_and_are_finite(kind):
    net = make(slots=2)
    x = {
        "zero": torch.zeros(2, 3, 8, 8),
        "constant": torch.full((2, 3, 8, 8), 1e4),
        "tiny": 1e-30 * images(2, 3, 8, 8),
        "cauchy": draw_noise(torch.full((2,), 13), seed=0, epoch=0, samples=torch.arange(2), image_size=8),
    }[kind]
    x[0, 0, 0, 0] += 1e7 * (kind == "cauchy")
    loss = loss_of(net, x)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        if kind == "cauchy":
            assert parameter.grad.abs().max() > 0, name
    code = net.encode(x)
    assert net.decode(code.z, code.log_scale, code.grid).isfinite().all()


def test_no_weights_take_the_variance_out_of_bounds():
    net = make()
    nn.init.normal_(net.posterior.weight, std=1e6)
    log_variance = net.encode(images(2, 3, 8, 8)).log_variance
    assert LOG_VARIANCES[0] <= log_variance.min() < -7.9
    assert 3.9 < log_variance.max() <= LOG_VARIANCES[1]


def test_gradients_of_rows_of_zeros_are_finite_and_moderate():
    net = make()
    for layer in (net.encoder[-1], net.posterior, net.to_bottleneck[0], net.expand_latent, net.decoder[0]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    _, code = net(images(2, 3, 8, 8), sample=False)
    weights = images(100, seed=1)
    sum((point_set * weights[: point_set.shape[-1]]).sum() for point_set in code.point_sets.values()).backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().max() < 1e8, name  # of sums over a hundred rows
    assert net.posterior.bias.grad.abs().max() > 0


def test_decode_inverts_what_forward_reconstructs():
    net = make(slots=2).eval()
    x = images(2, 3, 8, 12)
    reconstructions, code = net(x)
    expected, encoded = net.to_images(reconstructions, code.log_scale, code.grid), net.encode(x)
    assert set(encoded.point_sets) == {"M", "bottleneck", "mu", "z"}
    torch.testing.assert_close(net.decode(encoded.z, encoded.log_scale, encoded.grid), expected)


def test_samples_follow_the_generator_and_the_scale():
    net = make(slots=2)
    first, second, third = (net.sample(3, (8, 12), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.shape == (3, 3, 8, 12)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    z = images(3, 6, 2, 4)  # the same generator's
    torch.testing.assert_close(
        net.sample(3, (8, 12), 2.0, torch.Generator().manual_seed(0)), net.decode(z, torch.full((3, 6), 2.0), (2, 3))
    )


def test_autocast_leaves_points_and_latents_in_fp32():
    net = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstructions, code = net(images(2, 3, 8, 8))
    assert reconstructions.dtype == torch.float32
    assert code.mu.dtype == code.log_variance.dtype == code.companded.dtype == torch.float32
    for points in code.point_sets.values():
        assert points.dtype == torch.float32
        torch.testing.assert_close(points.norm(dim=-1), torch.ones(points.shape[:-1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1, got 0") for name in {**SMALL, "slots": 1} if name != "depth"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"hidden": 26}, "hidden must be a multiple of dim, which is 4, got 26"),
        ({"bottleneck": 10}, "bottleneck must be a multiple of dim, which is 4, got 10"),
        ({"image_size": 10}, "image size must be a multiple of patch_size 4, got 10×10"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(images(1, 3, 8, 10)), "image size must be a multiple of patch_size 4"),
        (lambda net: net.sample(0, (8, 8)), "count must be at least 1, got 0"),
        (lambda net: net.sample(1, (8, 8), 10.0), r"log_scale must be in \[-9.21, 9.21\], got 10.0"),
        (lambda net: net.decode(images(1, 4, 2, 4), torch.zeros(1, 4), (2, 2)), r"z must be \(1, 4, 1, 4\) for grid"),
        (lambda net: net.decode(images(1, 4, 1, 4), torch.zeros(1, 3), (2, 2)), r"log_scale must be \(1, 4\) for"),
    ],
)
def test_calls_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call(make())
