import pytest
import torch
from torch import nn

from eigenscope.nn.autoencoders.implants import ImplantedVAE
from eigenscope.nn.autoencoders.simplex_vae import SimplexVAE
from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.nn.batteries.battery_container import BatteryEntry, save_batteries
from eigenscope.noise import draw_noise

SMALL = {"num_points": 12, "dim": 8, "patch_size": 4, "hidden": 24, "depth": 1, "bottleneck": 24, "slots": 2}
BATTERY = {"num_points": 6, "dim": 4, "patch_size": 4, "hidden": 10, "depth": 1}
SOURCES = ("trained", "random", "shuffled")


@pytest.fixture
def array():
    torch.manual_seed(7)
    array = BatteryArray(3, **BATTERY)
    with torch.no_grad():
        for parameter in array.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return array


@pytest.fixture
def path(array, tmp_path):
    path = tmp_path / "batteries.safetensors"
    save_batteries(path, array, [BatteryEntry(("gaussian",), 10), BatteryEntry(("pink", "brown"), 20), BatteryEntry()])
    return str(path)


def make(path, seed=0, **changes):
    torch.manual_seed(seed)
    return ImplantedVAE(path, **{"implant_points": 5} | SMALL | changes)


def awake(path, **changes):
    """With implants that have a say, as after some training."""
    net = make(path, **changes)
    torch.manual_seed(1)
    for parameter in (net.to_bottleneck[0].weight, net.gate.weight, net.gate.bias):
        nn.init.normal_(parameter, std=0.3)
    return net


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(net, x):
    reconstructions, code = net(x)
    return (reconstructions - code.companded).square().mean() + code.kl.mean()


@pytest.mark.parametrize("source", SOURCES)
def test_it_starts_as_the_plain_model(path, source):
    torch.manual_seed(0)
    plain = SimplexVAE(**SMALL)
    after = torch.rand(3)
    net = make(path, source=source)
    assert torch.equal(torch.rand(3), after)  # what is drawn next is the same too
    x = images(2, 3, 8, 12)
    (expected, code), (given, other) = (m(x, True, torch.Generator().manual_seed(2)) for m in (plain, net))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    for name in ("mu", "log_variance", "z", "points", "bottleneck", "decoded_points", "decoder"):
        torch.testing.assert_close(getattr(other, name), getattr(code, name), rtol=1e-5, atol=1e-6)
    assert code.implants is None
    torch.testing.assert_close(
        net.decode(code.mu, code.log_scale, (2, 3)), plain.decode(code.mu, code.log_scale, (2, 3))
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_few_steps_wake_the_implants(path, source):
    net, x = make(path, source=source), images(2, 3, 8, 8)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()
    for name, weight in net.state_dict().items():
        assert not torch.equal(weight, before[name]), name


def test_the_batteries_are_those_of_the_container_and_compute_what_these_do(array, path):
    net = awake(path, batteries=[2, 0])
    for name, weight in net.batteries.named_parameters():
        assert torch.equal(weight, array.state_dict()[name][[2, 0]]), name
    assert net.implant_steps == (0, 10)
    assert net.implant_mixtures == ((), ("gaussian",))
    x = images(2, 3, 8, 12)
    x[0, 0, 0, 0] = 1e3  # of which the batteries see no more than 4
    reconstructions, code = net(x, sample=False)
    u = code.companded
    parts, batteries = [], [array.battery(2), array.battery(0)]
    for battery in batteries:
        numbers = battery.encoder(u.clamp(-4, 4)).unflatten(-1, (6, 4))
        parts.append(nn.functional.normalize(numbers, dim=-1).flatten(-2))
    implants = net.mix_encoded(torch.cat(parts, -1)).unflatten(-1, (5, 8))
    torch.testing.assert_close(code.implants, nn.functional.normalize(implants, dim=-1))
    latent = code.z.flatten(-2)
    rows = nn.functional.normalize(net.mix_latent(latent).unflatten(-1, (2, 6, 4)), dim=-1).flatten(-2)
    written = [battery.decoder(rows[..., k, :]) for k, battery in enumerate(batteries)]
    plain, _, _ = SimplexVAE._decode(net, code.z, code.log_scale)
    expected = plain + sum(net.gate(latent)[..., k, None] * patch for k, patch in enumerate(written))
    torch.testing.assert_close(reconstructions, expected)


def test_the_implants_are_a_point_set(path):
    net = make(path)
    point_sets = net(images(2, 3, 8, 8))[1].point_sets
    assert list(point_sets) == list(net.point_set_shapes) == ["M", "implants", "bottleneck", "mu", "z", "H", "decoder"]
    assert net.point_set_shapes["implants"] == (5, 8)
    assert point_sets["implants"].shape == (2, 4, 5, 8)
    torch.testing.assert_close(point_sets["implants"].norm(dim=-1), torch.ones(2, 4, 5))


def test_controls(array, path):
    trained, random, shuffled = (make(path, source=source) for source in SOURCES)
    assert trained.implant_steps == shuffled.implant_steps == (10, 20, 0)
    assert random.implant_steps == (0, 0, 0)
    for (name, kept), drawn, mixed in zip(
        trained.batteries.named_parameters(), random.implant_parameters(), shuffled.implant_parameters(), strict=True
    ):
        assert torch.equal(kept, array.state_dict()[name])
        assert kept.shape == drawn.shape == mixed.shape
        assert not torch.equal(kept, drawn), name
        assert not torch.equal(kept, mixed), name
        for k in range(3):  # of each battery by itself
            assert torch.equal(kept[k].flatten().sort().values, mixed[k].flatten().sort().values), name
    for name in ("mix_encoded", "mix_latent", "gate", "encoder", "to_bottleneck", "decoder"):
        for source in (random, shuffled):
            for a, b in zip(getattr(trained, name).parameters(), getattr(source, name).parameters(), strict=True):
                assert torch.equal(a, b), name
    for source in SOURCES[1:]:
        one, same, other = (make(path, seed, source=source).batteries.state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not any(torch.equal(one[name], other[name]) for name in one if ".layers.0." not in name)  # norms


def test_batteries_can_be_frozen(path):
    net = awake(path)
    net.set_implants_trainable(False)
    loss_of(net, images(2, 3, 8, 8)).backward()
    frozen = {id(parameter) for parameter in net.implant_parameters()}
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen) == name.startswith("batteries."), name
    net.set_implants_trainable(True)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("kind", ["cauchy", "zero", "constant"])
def test_gradients_are_finite_and_reach_everything(path, kind):
    net = awake(path)
    x = {
        "zero": torch.zeros(2, 3, 8, 8),
        "constant": torch.full((2, 3, 8, 8), 1e7),
        "cauchy": draw_noise(torch.full((2,), 13), seed=0, epoch=0, samples=torch.arange(2), image_size=8),
    }[kind]
    x[0, 0, 0, 0] += 1e7
    loss = loss_of(net, x)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() < 1e4, name
        if kind == "cauchy":
            assert parameter.grad.abs().max() > 0, name


def test_the_latent_does_not_depend_on_magnitude(path):
    net, x = awake(path), images(2, 3, 8, 8)
    torch.testing.assert_close(net.encode(64 * x).mu, net.encode(x).mu, rtol=1e-4, atol=1e-5)


def test_no_decomposition_and_no_double_precision_in_training(array, tmp_path, operation_recorder):
    save_batteries(tmp_path / "double.safetensors", array.double(), [BatteryEntry()] * 3)
    net = awake(str(tmp_path / "double.safetensors"))
    with operation_recorder() as seen:
        loss_of(net, images(2, 3, 8, 8)).backward()
    assert "aten::baddbmm" in seen.operations  # the batteries are seen, all in one product
    assert "aten::native_layer_norm_backward" in seen.operations
    assert not seen.decompositions
    assert not seen.dtypes & {torch.float64, torch.complex128}


def test_autocast_leaves_points_in_fp32(path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstructions, code = awake(path)(images(2, 3, 8, 8))
    assert reconstructions.dtype == code.implants.dtype == torch.float32
    torch.testing.assert_close(code.implants.norm(dim=-1), torch.ones(2, 4, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "copied"}, "source must be one of trained, random, shuffled, got 'copied'"),
        ({"implant_points": 0}, "implant_points must be at least 1, got 0"),
        ({"patch_size": 8}, r"patch_size must be 4, that of the batteries in .*batteries.safetensors, got 8"),
        ({"batteries": [0, 3]}, r"batteries\.safetensors .* there is no battery 3; there are 0 to 2"),
        ({"batteries": []}, "num_batteries must be at least 1, got 0"),
        ({"hidden": 26}, "hidden must be a multiple of dim, which is 8, got 26"),
        ({"path": "nowhere"}, "there is no battery container nowhere"),
    ],
)
def test_arguments_are_checked(path, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**{"path": path} | changes)


def test_a_truncated_container_is_refused(path):
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"batteries\.safetensors cannot be read"):
        make(path)
