import pytest
import torch
from torch import nn

from eigenscope.nn import LinearReadoutAutoencoder, PatchSVAE

SMALL = {"num_points": 12, "dim": 4, "patch_size": 4, "hidden": 24, "depth": 1}


def images(seed=0):
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def made(**options):
    torch.manual_seed(0)
    return LinearReadoutAutoencoder(**SMALL | options)


def test_the_formula():
    net = made(num_cross=0, readout_norm="layer_norm")
    code = net.encode(images())
    omega = nn.functional.layer_norm(net.readout(code.points.flatten(-2)), (4,))
    torch.testing.assert_close(code.readout, omega)
    torch.testing.assert_close(code.decoded_points.flatten(-2), net.expansion(omega))
    assert code.shift.abs().max() == 0
    with_cross = made().encode(images())
    torch.testing.assert_close(
        with_cross.shift, (with_cross.readout * (with_cross.gains - 1)).abs().mean((-2, -1)), rtol=1e-5, atol=1e-7
    )
    assert with_cross.shift.min() > 0


def test_a_patch_passes_through_as_many_numbers_as_there_are_dimensions():
    net = made(num_cross=0).double()
    flat = net.encode(images().double()).decoded_points.flatten(0, 1).flatten(1)
    many = torch.cat([flat, net.encode(images(1).double()).decoded_points.flatten(0, 1).flatten(1)])
    assert torch.linalg.matrix_rank(many - many.mean(0)) == 4
    control = made(bottleneck=False).double().encode(images().double())
    assert torch.linalg.matrix_rank(control.decoded_points.flatten(0, 1).flatten(1)) > 4


def test_rows_of_unit_length_bound_the_decoded_points():
    for normalise in (False, True):
        net = made(normalise=normalise)
        norms = net.encode(1e6 * images()).decoded_points.norm(dim=-1)
        assert torch.allclose(norms, torch.ones_like(norms)) is normalise


def test_orthogonal_initialisation():
    net = made(readout_init="orthogonal")
    torch.testing.assert_close(net.readout.weight @ net.readout.weight.mT, torch.eye(4) / 4)
    torch.testing.assert_close(net.expansion.weight.mT @ net.expansion.weight, torch.eye(4) / 4)


def test_everything_else_is_patch_svaes():
    names = {name: p.shape for name, p in PatchSVAE(**SMALL).named_parameters()}
    ours = {name: p.shape for name, p in made().named_parameters()}
    extra = {name for name in ours if name not in names}
    assert extra == {f"{layer}.{kind}" for layer in ("readout", "expansion") for kind in ("weight", "bias")}
    assert all(ours[name] == shape for name, shape in names.items())


@pytest.mark.parametrize(
    "options",
    [{}, {"readout_norm": "layer_norm", "readout_init": "orthogonal", "normalise": True}, {"bottleneck": False}],
)
def test_gradients_reach_everything(options):
    net = made(**options)
    nn.init.normal_(net.smoothing.layers[2].weight)
    net(images())[0].square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    names = [name for name, _ in net.trace(images())]
    assert ("readout ω" in names) is options.get("bottleneck", True)


def test_half_precision_throughout():
    net = made(readout_norm="layer_norm").to(torch.bfloat16)
    assert net(images().to(torch.bfloat16))[0].dtype == torch.bfloat16


def test_bad_arguments():
    with pytest.raises(ValueError, match="readout_norm must be one of none, layer_norm, got 'batch_norm'"):
        made(readout_norm="batch_norm")
    with pytest.raises(ValueError, match="readout_init must be one of default, orthogonal, got 'xavier'"):
        made(readout_init="xavier")
