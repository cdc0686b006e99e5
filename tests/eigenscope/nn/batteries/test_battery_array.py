import pytest
import torch
from torch import nn

from eigenscope.nn import PatchSVAE
from eigenscope.nn.batteries.battery_array import BatteryArray

SMALL = {"num_points": 8, "dim": 4, "patch_size": 4, "hidden": 12, "depth": 1, "num_cross": 2}


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def batteries(count=3, dtype=torch.float32, **changes):
    """Modules whose every parameter is away from its initial value, so that each one has an effect."""
    torch.manual_seed(1)
    modules = [PatchSVAE(**{**SMALL, **changes}).to(dtype) for _ in range(count)]
    for module in modules:
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return modules


def stacked(modules, **changes):
    """Copies of PatchSVAEs in an array."""
    states = [module.state_dict() for module in modules]
    weights = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return BatteryArray.from_weights({**SMALL, **changes}, weights)


def losses(reconstructions, code, images):
    """By battery, of everything that a network gives."""
    errors = (reconstructions - images).square().flatten(1).mean(1)
    seen = code.singular_values * code.gains
    return errors + seen.square().flatten(1).mean(1) + code.points[..., 0].flatten(1).sum(1).square() / 100


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"depth": 2, "num_cross": 0}, {"dim": 6, "num_heads": 3, "num_cross": 1}, {"patch_size": 16, "depth": 0}],
)
def test_outputs_and_gradients_are_those_of_the_modules_one_by_one(dtype, tolerance, changes):
    modules = batteries(3, dtype, **changes)
    array = stacked(modules, **changes)
    images = noise(3, 2, 3, 16, 32, dtype=dtype)
    reconstructions, code = array(images)
    assert reconstructions.shape == images.shape
    loss = losses(reconstructions, code, images)
    loss.sum().backward()
    gradients = {name: parameter.grad for name, parameter in array.named_parameters()}
    for k, module in enumerate(modules):
        alone, own = module(images[k])
        (own_loss,) = losses(
            alone[None], own._replace(**{f: getattr(own, f)[None] for f in own._fields[:4]}), images[k, None]
        )
        torch.testing.assert_close(reconstructions[k], alone, rtol=0, atol=10 * tolerance)
        torch.testing.assert_close(code.points[k], own.points, rtol=0, atol=tolerance)
        torch.testing.assert_close(code.singular_values[k], own.singular_values, rtol=0, atol=10 * tolerance)
        torch.testing.assert_close(code.gains[k], own.gains, rtol=0, atol=tolerance)
        assert code.right_vectors[k].shape == own.right_vectors.shape
        assert code.grid == own.grid
        own_loss.backward()
        assert gradients.keys() == dict(module.named_parameters()).keys()
        for name, parameter in module.named_parameters():
            largest = parameter.grad.abs().max()
            assert largest > 0, name
            torch.testing.assert_close(
                gradients[name][k], parameter.grad, rtol=0, atol=tolerance * max(1.0, float(largest)), msg=f"{k} {name}"
            )


def test_training_together_is_training_alone():
    modules = batteries(3, torch.float64)
    array = stacked(modules)
    images = noise(3, 4, 3, 8, 8, dtype=torch.float64)

    def train(net, own):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            (net(own)[0] - own).square().mean((-4, -3, -2, -1)).sum().backward()
            optimizer.step()

    train(array, images)
    for k, module in enumerate(modules):
        train(module, images[k])
        for trained, alone in zip(array.battery(k).parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(trained, alone, rtol=0, atol=1e-10)


def test_one_battery_is_a_patch_svae_started_alike():
    torch.manual_seed(3)
    array = BatteryArray(1, **SMALL)
    torch.manual_seed(3)
    net = PatchSVAE(**SMALL)
    for (name, one), (_, weight) in zip(array.state_dict().items(), net.state_dict().items(), strict=True):
        assert torch.equal(one, weight[None]), name
    images = noise(2, 3, 8, 8)
    torch.testing.assert_close(array(images)[0][0], net(images)[0], rtol=0, atol=1e-6)


def test_each_battery_is_initialised_on_its_own_as_a_patch_svae_is():
    torch.manual_seed(3)
    array = BatteryArray(3, **SMALL)
    torch.manual_seed(3)
    modules = [PatchSVAE(**SMALL) for _ in range(3)]
    for name, weight in stacked(modules).state_dict().items():
        assert torch.equal(array.state_dict()[name], weight), name
    last = array.encoder[-1].weight.detach()  # (K, V·D, hidden): orthonormal columns
    torch.testing.assert_close(last.mT @ last, torch.eye(12).expand(3, -1, -1), rtol=0, atol=1e-5)
    assert not torch.equal(last[0], last[1])


def test_the_defaults_make_batteries_of_40355_parameters():
    assert sum(p.numel() for p in BatteryArray(2).parameters()) == 2 * 40_355
    assert sum(p.numel() for p in BatteryArray(2, depth=2).parameters()) == 2 * 57_251


def test_images_may_be_shared():
    array = stacked(batteries())
    images = noise(2, 3, 8, 12)
    shared, code = array(images)
    own, own_code = array(images.expand(3, -1, -1, -1, -1))
    assert shared.shape == (3, 2, 3, 8, 12)
    assert torch.equal(shared, own)
    assert torch.equal(code.points, own_code.points)


def test_a_battery_sees_its_own_images_only():
    array = stacked(batteries())
    images = noise(3, 2, 3, 8, 8)
    changed = images.clone()
    changed[1] *= 2
    with torch.no_grad():
        before, after = array(images)[0], array(changed)[0]
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_gradients_stay_finite_with_equal_singular_values():
    array = BatteryArray(2, num_points=4, dim=4, patch_size=4, hidden=8, depth=0)
    last = array.encoder[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.eye(4).flatten())  # M = I: four equal singular values
    images = noise(2, 1, 3, 8, 8)
    (array(images)[0] - images).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in array.parameters())
    assert last.weight.grad.abs().amax((1, 2)).min() > 0


def test_a_battery_leaves_and_comes_back_the_same_to_the_bit_and_on_its_own():
    array = stacked(batteries(gram_precision="fp32"), gram_precision="fp32")
    array.gram_precision = "fp64"
    state = torch.get_rng_state()
    again = stacked([array.battery(k) for k in range(3)])
    assert torch.equal(state, torch.get_rng_state())
    assert again.architecture == array.architecture
    for name, weight in array.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    battery = array.battery(2)
    assert type(battery) is PatchSVAE
    assert battery.gram_precision == "fp64"
    before = array.encoder[0].bias.detach().clone()
    nn.init.zeros_(battery.encoder[0].bias)
    assert torch.equal(array.encoder[0].bias, before)


def test_some_may_be_selected():
    array = stacked(batteries())
    some = array.select([2, 0, 2])
    assert some.num_batteries == 3
    assert array.select(range(1)).num_batteries == 1
    images = noise(1, 3, 8, 8)
    torch.testing.assert_close(some(images)[0], array(images)[0][[2, 0, 2]], rtol=0, atol=1e-6)
    nn.init.zeros_(some.encoder[0].weight)
    assert array.encoder[0].weight.abs().min() > 0


def test_tiles_make_the_whole():
    array = stacked(batteries(num_cross=0), num_cross=0)  # cross-attention reaches the patches of a tile only
    images = noise(2, 3, 8, 16)
    whole = array.reconstruct(images)
    assert whole.shape == (3, 2, 3, 8, 16)
    torch.testing.assert_close(array.reconstruct(images, tile=4), whole, rtol=0, atol=1e-6)


def test_sectors_are_those_of_a_patch_svae():
    array = BatteryArray(2, **SMALL)
    assert array.point_set_shapes == {"M": (8, 4)}
    assert array.encode(noise(2, 3, 8, 8)).point_sets["M"].shape == (2, 2, 4, 8, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: BatteryArray(0), "num_batteries must be at least 1, got 0"),
        (lambda a: BatteryArray(2, num_points=3), "num_points must be at least dim, 4, got 3"),
        (lambda a: BatteryArray(2, image_size=30), "patch_size 4, got 30×30"),
        (lambda a: a.battery(3), "no battery 3; there are 0 to 2"),
        (lambda a: a.select([0, -1]), "no battery -1; there are 0 to 2"),
        (lambda a: a.select([]), "num_batteries must be at least 1"),
        (lambda a: a(noise(2, 1, 3, 8, 8)), r"must be \(3, B, 3, H, W\) or .* got \(2, 1, 3, 8, 8\)"),
        (lambda a: a.reconstruct(noise(3, 8, 8)), r"got \(3, 8, 8\)"),
        (lambda a: a(noise(1, 3, 8, 10)), "patch_size 4, got 8×10"),
        (
            lambda a: BatteryArray.from_weights(a.architecture, {}),
            "cross_attention.0.attention.in_proj_bias is missing",
        ),
        (lambda a: BatteryArray.from_weights({**SMALL, "num_cross": 0}, a.state_dict()), "in_proj_bias has no place"),
        (lambda a: BatteryArray.from_weights(a.architecture, a.battery(0).state_dict()), "must be real numbers"),
        (
            lambda a: BatteryArray.from_weights({**SMALL, "hidden": 13}, a.state_dict()),
            r"\(3, 13, 48\), got .* \(3, 12",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    array = stacked(batteries())
    with pytest.raises(ValueError, match=message):
        call(array)


def test_half_precision_throughout():
    torch.manual_seed(0)
    array = BatteryArray(2, num_points=8, dim=4, patch_size=4, hidden=8).to(torch.bfloat16)
    assert array(torch.randn(3, 3, 8, 8).to(torch.bfloat16))[0].dtype == torch.bfloat16
