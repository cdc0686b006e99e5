import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eigenscope.kv.measuring.attention_layers import attention_layers
from eigenscope.kv.measuring.capture import capture, eager_inference, replaced
from eigenscope.nn import DeiT, observe
from eigenscope.nn.transformers.causal_transformer import CausalTransformer

B, T, WIDTH = 2, 5, 8


def deit():
    torch.manual_seed(0)
    return DeiT(image_size=8, patch_size=4, num_classes=3, width=WIDTH, depth=2, num_heads=2).eval()


def images():
    return torch.rand(B, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Projected(nn.Module):
    """Attention with the names that transformers uses, and none of its other habits."""

    def __init__(self, **attributes):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.temperature = 1.0
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        Q, K, V = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(Q * self.temperature, K, V).transpose(1, 2).flatten(2))


class Around(nn.Module):
    """A network of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


def context(layer):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return Around(layer).eval()


def tokens():
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(1))


def attended(seen):
    """(B, T, width) of what was captured, in float64."""
    Q, K, V = (x.double() for x in (seen.context.turn(seen.queries), seen.context.turn(seen.keys), seen.values))
    repeats = Q.shape[1] // K.shape[1]
    K, V = K.repeat_interleave(repeats, 1), V.repeat_interleave(repeats, 1)
    scores = Q @ K.mT / Q.shape[-1] ** 0.5
    if seen.context.causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
    if seen.context.mask is not None:
        mask = seen.context.mask
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    return (scores.softmax(-1) @ V).transpose(1, 2).flatten(2).float()


def copies(captured):
    return {name: (seen.keys.clone(), seen.values.clone()) for name, seen in captured.items()}


@torch.no_grad()
def test_probes_of_a_deit():
    net = deit()
    layers = attention_layers(net)
    assert [layer.name for layer in layers] == ["blocks.0.attention", "blocks.1.attention"]
    with observe(net) as probed:
        expected = net(images())
    logits, captured, unreadable = capture(layers, lambda: net(images()))
    assert (unreadable, logits.equal(expected)) == ({}, True)
    for name, seen in captured.items():
        for role in ("queries", "keys", "values"):
            assert getattr(seen, role).equal(probed[f"{name}.{role}"])
    changed = copies(captured)
    with replaced(layers, changed):
        assert net(images()).equal(expected)
    changed["blocks.1.attention"][1].zero_()
    with replaced(layers, changed):
        zeroed = net(images())
    net.blocks[1].attention.values.hooks = (torch.zeros_like,)
    assert zeroed.equal(net(images()))
    assert not zeroed.equal(expected)


@torch.no_grad()
def test_a_causal_transformer_is_turned_and_masked():
    torch.manual_seed(0)
    net = CausalTransformer(11, width=8, depth=1, num_heads=4, num_key_heads=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    given = []
    net.blocks[0].attention.projection.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    text = torch.randint(11, (B, 7), generator=torch.Generator().manual_seed(0))
    _, captured, _ = capture(attention_layers(net), lambda: net(text))
    torch.testing.assert_close(attended(captured["blocks.0.attention"]), given[0])


def masks(kind):
    generator = torch.Generator().manual_seed(2)
    padding = torch.arange(T) >= torch.tensor([T, T - 2])[:, None]
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
    return {
        "none": {},
        "causal": {"attn_mask": ahead, "is_causal": True},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": ahead, "key_padding_mask": padding},
        "float": {"attn_mask": torch.randn(T, T, generator=generator)},
        "by head": {"attn_mask": torch.randn(B * 2, T, T, generator=generator)},
    }[kind]


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "both", "float", "by head"])
@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"batch_first": True, "kdim": 6, "vdim": 3}])
@pytest.mark.parametrize("weights", [{}, {"need_weights": False}, {"average_attn_weights": False}])
@torch.no_grad()
def test_multihead_attention(kind, options, weights):
    layer = nn.MultiheadAttention(WIDTH, 2, **options)
    net = context(layer)
    own = tokens()
    inputs = [own, own[..., : options.get("kdim", WIDTH)], own[..., : options.get("vdim", WIDTH)]]
    if not options.get("batch_first"):
        inputs = [x.transpose(0, 1) for x in inputs]

    def run():
        return net(*inputs, **masks(kind), **weights)

    expected, expected_weights = run()
    layers = attention_layers(net)
    (out, _), captured, unreadable = capture(layers, run)
    assert unreadable == {}
    torch.testing.assert_close(out, expected)
    mixed = layer.out_proj(attended(captured["layer"]))
    torch.testing.assert_close(mixed if options.get("batch_first") else mixed.transpose(0, 1), expected)
    with replaced(layers, copies(captured)):
        again, again_weights = run()
    torch.testing.assert_close(again, expected)
    if weights.get("need_weights", True):
        torch.testing.assert_close(again_weights, expected_weights)
    else:
        assert again_weights is None
    keys, values = copies(captured)["layer"]
    with replaced(layers, {"layer": (torch.zeros_like(keys), values)}):
        uniform, _ = run()
    if kind == "none":  # no key stands out: every query takes the mean
        mean = layer.out_proj(values.mean(2).flatten(1))[:, None].expand(B, T, -1)
        torch.testing.assert_close(uniform if options.get("batch_first") else uniform.transpose(0, 1), mean)
    assert not layer._forward_hooks
    assert run()[0].equal(expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own fast path
def test_the_fast_path_of_an_encoder_is_left_and_taken_again():
    torch.manual_seed(0)
    net = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), 2, enable_nested_tensor=True
    ).eval()
    padding = torch.arange(T) >= torch.tensor([T, T - 2])[:, None]
    with torch.inference_mode():
        expected = net(tokens(), src_key_padding_mask=padding)
        layers = attention_layers(net)
        assert [layer.name for layer in layers] == ["layers.0.self_attn", "layers.1.self_attn"]
        out, captured, unreadable = capture(layers, lambda: net(tokens(), src_key_padding_mask=padding))
        torch.testing.assert_close(out[~padding], expected[~padding])
        assert (sorted(captured), unreadable) == ([layer.name for layer in layers], {})
        with replaced(layers, copies(captured)):
            torch.testing.assert_close(net(tokens(), src_key_padding_mask=padding)[~padding], expected[~padding])
    assert torch.backends.mha.get_fastpath_enabled()


@torch.no_grad()
def test_projections_without_transformers():
    net = context(Projected(num_heads=2))
    expected = net(tokens())
    layers = attention_layers(net)
    out, captured, unreadable = capture(layers, lambda: net(tokens()))
    assert (out.equal(expected), unreadable, captured["layer"].explained) == (True, {}, True)
    torch.testing.assert_close(captured["layer"].keys, net.layer.k_proj(tokens()).unflatten(-1, (2, 4)).transpose(1, 2))
    with replaced(layers, copies(captured)):
        assert net(tokens()).equal(expected)
    with replaced(layers, {"layer": (captured["layer"].keys, torch.zeros_like(captured["layer"].values))}):
        torch.testing.assert_close(net(tokens()), net.layer.o_proj.bias.expand(B, T, WIDTH))
    net.layer.temperature = 3.0
    assert not capture(layers, lambda: net(tokens()))[1]["layer"].explained


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_transformers_model(padded, implementation):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=implementation,
        initializer_range=0.5,
    )
    net = transformers.LlamaForCausalLM(config).eval()
    text = torch.randint(13, (B, 6), generator=torch.Generator().manual_seed(0))
    given = {"attention_mask": torch.ones_like(text)}
    if padded:
        given["attention_mask"][1, :2] = 0

    def run():
        return net(text, **given, use_cache=False).logits

    expected = run()
    layers = attention_layers(net, "*layers.1.*")
    assert [layer.name for layer in layers] == ["model.layers.1.self_attn"]
    out, captured, unreadable = capture(layers, run)
    seen = captured["model.layers.1.self_attn"]
    assert (out.equal(expected), unreadable, seen.explained) == (True, {}, True)
    assert (seen.queries.shape, seen.keys.shape) == ((B, 4, 6, 4), (B, 2, 6, 4))
    with replaced(layers, copies(captured)):
        assert run().equal(expected)
    with replaced(layers, {"model.layers.1.self_attn": (seen.keys.flip(2), seen.values)}):
        assert not run().allclose(expected, atol=1e-3)
    if padded:
        mask = seen.context.mask
        assert (~mask if mask.dtype == torch.bool else mask == -torch.inf)[1, 0, 5].tolist() == [True] * 2 + [False] * 4
    looking = given["attention_mask"].bool()
    torch.testing.assert_close(attended(seen)[looking], seen.context.mixed[looking])
    seen.context.turn = lambda x: x  # without rotation it is something else
    assert not attended(seen)[looking].allclose(seen.context.mixed[looking], atol=1e-2)


@torch.no_grad()
def test_what_cannot_be_read_says_why():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.biased = nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True, batch_first=True)
            self.zeroed = nn.MultiheadAttention(WIDTH, 2, add_zero_attn=True, batch_first=True)
            self.single = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.headless = Projected()
            self.unused = nn.MultiheadAttention(WIDTH, 2)
            self.shared = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.broken = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x):
            self.single(x[0], x[0], x[0])
            self.headless(x)
            self.broken(x * torch.nan, x, x)
            return [layer(x, x, x) for layer in (self.biased, self.zeroed, self.shared, self.shared)]

    net = Unused().eval()
    _, captured, unreadable = capture(attention_layers(net), lambda: net(tokens()))
    assert captured == {}
    assert {name: reason.split()[-1] for name, reason in unreadable.items()} == {
        "biased": "add_zero_attn)",
        "zeroed": "add_zero_attn)",
        "single": "width)",
        "headless": "heads",
        "unused": "it",
        "shared": "once",
        "broken": "finite",
    }


def test_nothing_stays_attached_after_an_error():
    net = nn.ModuleList([deit(), nn.MultiheadAttention(WIDTH, 2), Projected(num_heads=2)])
    layers = attention_layers(net)
    assert len(layers) == 4

    def fail():
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        capture(layers, fail)
    with pytest.raises(RuntimeError, match="in the middle"), replaced(layers, {}):
        fail()
    assert torch.backends.mha.get_fastpath_enabled()
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not getattr(module, "hooks", ())


@torch.no_grad()
def test_a_compiled_network_is_read_and_not_compiled_again():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    net = context(nn.MultiheadAttention(WIDTH, 2, batch_first=True))
    net.compile(backend=backend)
    x = tokens()
    expected = net(x, x, x, need_weights=False)[0]
    count = len(compilations)
    with eager_inference(torch.device("cpu")):
        for _ in range(2):
            (out, _), captured, unreadable = capture(attention_layers(net), lambda: net(x, x, x, need_weights=False))
            torch.testing.assert_close(out, expected)
            assert (list(captured), unreadable) == (["layer"], {})
    assert net(x, x, x, need_weights=False)[0].equal(expected)
    assert len(compilations) == count > 0


def test_random_numbers_are_not_used_up():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with eager_inference(torch.device("cpu")):
        assert not (torch.rand(3, requires_grad=True) * 2).requires_grad
    assert torch.rand(3).equal(expected)


def test_patterns():
    net = deit()
    assert [layer.name for layer in attention_layers(net, "*1*")] == ["blocks.1.attention"]
    with pytest.raises(
        ValueError, match=r"no attention layer matches 'blocks.7.*'; there are: blocks.0.attention, blo"
    ):
        attention_layers(net, "*", "blocks.7.*")
    with pytest.raises(ValueError, match="Linear has no attention layer"):
        attention_layers(nn.Linear(1, 1))
