import pytest
import torch

from eigenscope.nn import DeiT, TapConfig, hook_points, observe

SMALL = {"width": 32, "depth": 3, "num_heads": 4, "num_classes": 7}
TAPS = TapConfig(layers=(1, 3), rank=8)


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def test_published_counts():
    with torch.device("meta"):
        plain = DeiT()
    tapped = DeiT(taps=TapConfig(layers=(3, 6, 9, 12)))
    assert count(plain) == 21_526_372
    assert count(tapped) == 21_676_900
    assert {count(block) for block in plain.blocks} == {1_774_464}
    assert count(plain.patch_embedding) == 18_816
    assert count(plain.head) == 187_108
    assert plain.positions.numel() == 24_960
    assert count(plain) - count(plain, trainable=True) == 768
    assert count(tapped) - count(tapped, trainable=True) == 768 + 49_152
    assert sum(value.numel() for value in tapped.state_dict().values()) == count(tapped)


@pytest.mark.parametrize("kind", ["svd", "svd_raw", "gram_diagonal", "pooled", "zeros"])
def test_controls_have_equal_counts(kind):
    config = TapConfig(layers=(3, 6, 9, 12), features=kind)
    assert count(DeiT(taps=config)) == 21_676_900


def test_initialisation():
    net = DeiT(taps=TapConfig(layers=(6,)))
    qkv = net.blocks[0].attention.qkv
    bound = (6 / (384 + 1152)) ** 0.5
    assert 0.99 * bound < qkv.weight.abs().max() <= bound
    assert qkv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    for linear in (net.blocks[0].attention.projection, net.blocks[3].mlp[0], net.head[0]):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert (linear.bias == 0).all()
    assert (qkv.bias == 0).all()
    assert net.taps.projections.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.patch_embedding.weight.std().item() == pytest.approx((2 / (384 * 16)) ** 0.5, rel=0.02)
    assert net.positions.std().item() == pytest.approx(0.02, rel=0.03)


def test_both_arms_share_their_trunk_at_one_seed():
    nets = []
    for taps in (None, TAPS):
        torch.manual_seed(5)
        nets.append(DeiT(**SMALL, taps=taps))
    plain, tapped = (net.state_dict() for net in nets)
    for name, value in plain.items():
        assert name.startswith("head") or torch.equal(value, tapped[name]), name


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    net = DeiT(**SMALL, dropout=0.0).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    block = net.blocks[0]
    inputs = []
    handle = block.attention.register_forward_hook(lambda module, args, out: inputs.append((args[0], out)))
    with observe(net, "blocks.0.attention.*") as seen:
        net(images)
    handle.remove()
    x, out = inputs[0]
    q, k, v = (seen[f"blocks.0.attention.{name}"] for name in ("queries", "keys", "values"))
    assert q.shape == k.shape == v.shape == (2, 4, 65, 8)
    width = 32
    weights = block.attention.qkv.weight
    torch.testing.assert_close(k.transpose(1, 2).flatten(2), x @ weights[width : 2 * width].T)
    mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(out, block.attention.projection(mixed.transpose(1, 2).flatten(2)))


def test_frozen_weights_stay_and_the_others_move():
    torch.manual_seed(0)
    net = DeiT(**SMALL, taps=TAPS)
    before = {name: value.clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.rand(4, 3, 32, 32)), torch.randint(0, 7, (4,)))
        loss.backward()
        optimizer.step()
    frozen = {"taps.projections", "unused_patch_norm.weight", "unused_patch_norm.bias"}
    assert {name for name, value in net.named_parameters() if torch.equal(value, before[name])} == frozen


def test_every_trainable_parameter_takes_part_in_the_loss():
    net = DeiT(**SMALL, taps=TAPS)
    net(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_compiles_into_one_graph():
    torch._dynamo.reset()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    net, images = DeiT(**SMALL, dropout=0.0, taps=TAPS), torch.rand(40, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        net.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(net(images), expected)
    net(images).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    net = DeiT(**SMALL, taps=TAPS).to(dtype)
    assert net(torch.rand(2, 3, 32, 32, dtype=dtype)).dtype == dtype


def test_other_sizes():
    net = DeiT(image_size=48, patch_size=8, in_channels=1, **SMALL)
    assert net(torch.rand(3, 1, 48, 48)).shape == (3, 7)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"patch_size": 5}, "patch_size must divide image_size 32"),
        ({"num_heads": 7}, "num_heads must divide width 384"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 0}, "depth"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"num_classes": 0}, "num_classes"),
        ({"taps": TapConfig(layers=(3, 13))}, "taps.layers must lie within 1 to 12"),
        ({"taps": TapConfig(layers=(3,), rank=65)}, "taps.rank must be at most 64"),
        ({"width": 24, "taps": TapConfig(layers=(3,))}, "taps.rank must be at most 24"),
    ],
)
def test_bad_input(arguments, word):
    with pytest.raises(ValueError, match=word):
        DeiT(**arguments)


def test_all_hook_points_are_listed():
    names = list(hook_points(DeiT(**SMALL, taps=TAPS)))
    assert len(names) == 3 * 3 + 2 + 1
    assert names[-3:] == ["taps.inputs.0", "taps.inputs.1", "taps.projected"]
