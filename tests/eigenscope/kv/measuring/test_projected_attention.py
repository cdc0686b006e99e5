from itertools import permutations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from eigenscope.kv.measuring.attention_context import ROLES
from eigenscope.kv.measuring.attention_layers import attention_layers
from eigenscope.kv.measuring.capture import capture, replaced
from eigenscope.kv.measuring.head_layouts import FusedLayout, fused_layouts
from eigenscope.kv.measuring.measures import attention_weights
from eigenscope.kv.measuring.projection_names import norms, projections

B, T, HEADS, D = 2, 7, 4, 8
SIZES = {
    "vocab_size": 13,
    "hidden_size": HEADS * D,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {"n_embd": HEADS * D, "n_head": HEADS, "n_layer": 2}
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
GROUPED = {"num_key_value_heads": 2}
FALCON = {"new_decoder_architecture": False, "multi_query": False}
DECODERS = {  # type, options, heads of keys
    "llama": ("llama", GROUPED, 2),
    "qwen3": ("qwen3", GROUPED | {"head_dim": D}, 2),
    "olmo2": ("olmo2", GROUPED, 2),
    "cohere": ("cohere", GROUPED, 2),
    "glm": ("glm", GROUPED | {"head_dim": D}, 2),
    "phi": ("phi", GROUPED | {"qk_layernorm": True}, 2),
    "phi3": ("phi3", GROUPED, 2),
    "gpt2": ("gpt2", OLD, 4),
    "gpt_bigcode": ("gpt_bigcode", OLD | {"multi_query": True}, 1),
    "gpt_neox": ("gpt_neox", PARTIAL, 4),
    "bloom": ("bloom", {"n_head": HEADS, "n_layer": 2}, 4),
    "falcon": ("falcon", FALCON, 4),
    "falcon, one key head": ("falcon", FALCON | {"multi_query": True}, 1),
    "falcon, groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    "mpt": ("mpt", {"d_model": HEADS * D, "n_heads": HEADS, "n_layers": 2, "attn_implementation": "eager"}, 4),
    "falcon, alibi": ("falcon", FALCON | {"alibi": True, "attn_implementation": "eager"}, 4),
}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": HEADS * D, "depth": 2, "num_heads": HEADS, "num_classes": 5}
VISION = {
    "timm": (VisionTransformer, {}),
    "timm with norms": (VisionTransformer, {"qk_norm": True}),
    "timm with a norm of outputs": (VisionTransformer, {"qk_norm": True, "scale_attn_norm": True}),
    "timm with rotation": (Eva, {"use_rot_pos_emb": True, "qkv_bias": False, "qk_norm": True}),
    "timm, separate": (Eva, {"use_rot_pos_emb": True, "qkv_fused": False}),
}


def spread(net):
    """Weights whose attention is far from uniform."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


@torch.no_grad()
def check(net, run, key_heads):
    """Captured, explained by the formula, and replaced without a trace."""
    expected = run()
    layers = attention_layers(net)
    out, captured, unreadable = capture(layers, run)
    assert (out.equal(expected), unreadable, len(captured)) == (True, {}, len(layers))
    for seen in captured.values():
        assert seen.explained
        assert (seen.queries.shape[1], seen.keys.shape[1], seen.values.shape[1]) == (HEADS, key_heads, key_heads)
        assert {x.shape[-1] for x in seen[:3]} == {D}
        Q, K = (seen.context.turn(x).double() for x in seen[:2])
        K, V = (x.repeat_interleave(HEADS // key_heads, 1) for x in (K, seen.values.double()))
        A = attention_weights(Q @ K.mT, D, seen.context.scale, seen.context.mask, seen.context.causal)
        given = seen.context.mixed.reshape(B, -1, HEADS, D).transpose(1, 2).double()
        looking = A.sum(-1) > 0
        torch.testing.assert_close((A @ V)[looking], given[looking], atol=1e-4, rtol=1e-4)
    own = {name: (seen.keys.clone(), seen.values.clone()) for name, seen in captured.items()}
    with replaced(layers, own):
        assert run().equal(expected)
    for place in range(2):  # keys, then values
        other = {name: tuple(x.flip(2) if i == place else x for i, x in enumerate(pair)) for name, pair in own.items()}
        with replaced(layers, other):
            assert not run().allclose(expected, atol=1e-3)
    again = capture(layers, run)[1]
    assert all(seen.explained and seen.keys.equal(own[name][0]) for name, seen in again.items())
    assert run().equal(expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_transformers(name):
    model_type, options, key_heads = DECODERS[name]
    options = dict(options)
    implementation = options.pop("attn_implementation", None)
    config = AutoConfig.for_model(model_type, **SIZES | options)
    net = spread(AutoModelForCausalLM.from_config(config, attn_implementation=implementation))
    text = torch.randint(3, 13, (B, T), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(text)
    mask[1, :2] = 0
    check(net, lambda: net(text, attention_mask=mask).logits[mask.bool()], key_heads)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("bert", {}), ("distilbert", {"dim": HEADS * D, "n_heads": HEADS, "n_layers": 2, "hidden_dim": 16})],
)
def test_encoders_of_transformers(model_type, options):
    net = spread(AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES | options)))
    text = torch.randint(3, 13, (B, T), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(text)
    mask[1, 5:] = 0
    check(net, lambda: net(text, attention_mask=mask).last_hidden_state[mask.bool()], HEADS)


@pytest.mark.parametrize("name", VISION)
def test_networks_of_timm(name):
    kind, options = VISION[name]
    net = spread(kind(**SMALL, **options))
    images = torch.rand(B, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    check(net, lambda: net(images), HEADS)


class Fused(nn.Module):
    """Attention whose one projection has a layout that is given."""

    def __init__(self, layout, called="in_proj"):
        super().__init__()
        self.layout, self.num_heads, self.head_dim = layout, layout.groups * layout.shared, layout.width
        width = self.num_heads * layout.width
        self.add_module(called, nn.Linear(width, width + 2 * layout.groups * layout.width))
        self.out, self.called, self.temperature = nn.Linear(width, width), called, 1.0

    def forward(self, x):
        Q, K, V = (self.layout.split(0, getattr(self, self.called)(x))[role] for role in ROLES)
        mixed = F.scaled_dot_product_attention(Q * self.temperature, K, V, is_causal=True, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    is_causal = True


LAYOUTS = [
    FusedLayout(kind, 2, r, 4, order) for kind in ("blocks", "groups") for r in (1, 2) for order in permutations(ROLES)
]
LAYOUTS += [FusedLayout("channels", 2, 1, 4, order) for order in permutations(ROLES)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.kind}-{x.shared}-{'-'.join(x.order)}")
@torch.no_grad()
def test_any_layout_is_found_by_what_the_layer_gives(layout):
    net = nn.Sequential(spread(Fused(layout)))
    x = torch.randn(B, T, layout.groups * layout.shared * layout.width, generator=torch.Generator().manual_seed(0))
    (layer,) = layers = attention_layers(net)
    expected, captured, unreadable = capture(layers, lambda: net(x))
    assert unreadable == {}
    projected = net[0].in_proj(x)
    heads = layout.split(0, projected)
    for role in ROLES:
        assert getattr(captured[layer.name], role).equal(heads[role])
    assert layout.join(0, heads).equal(projected)
    assert layout in [*fused_layouts(projected.shape[-1], layout.groups * layout.shared, layout.width, False)]
    with replaced(layers, {"0": (torch.zeros_like(heads["keys"]), torch.ones_like(heads["values"]))}):
        torch.testing.assert_close(net(x), net[0].out(torch.ones_like(x)))
    assert net(x).equal(expected)


@torch.no_grad()
def test_a_fused_layer_that_is_not_explained_is_refused_by_name():
    net = nn.Sequential(spread(Fused(FusedLayout("blocks", 2, 1, 4))))
    net[0].temperature = 3.0
    x = torch.randn(B, T, 8, generator=torch.Generator().manual_seed(0))
    _, captured, unreadable = capture(attention_layers(net), lambda: net(x))
    assert captured == {}
    assert unreadable["0"].startswith(
        "how its in_proj of 24 channels holds 2 query heads of 4 channels, keys and values"
    )


@torch.no_grad()
def test_other_things_that_cannot_be_read_are_said():
    def reason(change, layout=LAYOUTS[0]):
        layer = spread(Fused(layout))
        change(layer)
        net = nn.Sequential(layer)
        x = torch.randn(B, T, 8, generator=torch.Generator().manual_seed(0))
        return capture(attention_layers(net), lambda: net(x))[2]["0"]

    def weights_alone(layer):
        layer.forward = lambda x: F.linear(x, layer.in_proj.weight)

    assert reason(weights_alone) == "it does not call its in_proj, as if it used the weights alone"

    def other_heads(layer):
        layer.num_heads = 5

    assert reason(other_heads).startswith("24 channels of its in_proj are not those of 5 query heads of 4 channels")

    def spatial(layer):
        layer.in_proj = nn.Conv1d(T, T, 1)
        layer.forward = lambda x: layer.in_proj(x)[None].mean(0)

    assert "channels of its in_proj are not those of" in reason(spatial)


@torch.no_grad()
def test_a_norm_of_something_else_leaves_separate_projections_readable():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))
            self.q_norm, self.k_norm, self.num_heads = nn.LayerNorm(4), nn.LayerNorm(4), 2

        def forward(self, x):
            Q, K, V = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
            Q, K = self.q_norm(Q.flip(-1)), self.k_norm(K.flip(-1))
            return self.o_proj(F.scaled_dot_product_attention(Q, K, V).transpose(1, 2).flatten(2))

    net, x = nn.Sequential(spread(Late())), torch.randn(B, T, 8, generator=torch.Generator().manual_seed(0))
    layers = attention_layers(net)
    expected, captured, unreadable = capture(layers, lambda: net(x))
    assert (unreadable, captured["0"].explained) == ({}, False)
    assert captured["0"].keys.equal(net[0].k_proj(x).unflatten(-1, (2, 4)).transpose(1, 2))
    with replaced(layers, {"0": (captured["0"].keys.clone(), captured["0"].values.clone())}):
        assert net(x).equal(expected)


@torch.no_grad()
def test_replacing_before_anything_was_captured_is_an_error():
    net = nn.Sequential(spread(Fused(LAYOUTS[0])))
    x = torch.zeros(B, T, 8)
    keys = torch.ones(B, 2, T, 4)
    message = r"keys of '0' can be replaced only after a forward pass was captured"
    with pytest.raises(ValueError, match=message), replaced(attention_layers(net), {"0": (keys, keys)}):
        net(x)
    assert not net[0]._forward_hooks


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")),
        (("value", "key", "query"), ("query", "key", "value")),
        (("to_q", "to_k", "to_v", "to_out"), ("to_q", "to_k", "to_v")),
        (("wq", "wk", "wv"), ("wq", "wk", "wv")),
        (("W_Q", "W_K", "W_V"), ("W_Q", "W_K", "W_V")),
        (("q", "k", "v", "o"), ("q", "k", "v")),
        (("linear_q", "linear_k", "linear_v"), ("linear_q", "linear_k", "linear_v")),
        (("Wqkv",), ("Wqkv",)),
        (("attn_drop", "qkv", "proj"), ("qkv",)),
        (("q_norm", "k_norm", "v_norm", "qkv_proj"), ("qkv_proj",)),
        (("pool_q", "pool_k", "pool_v"), None),
        (("query", "value"), None),
    ],
)
def test_projections_by_their_names(names, found):
    assert projections(nn.ModuleDict({name: nn.Linear(1, 1) for name in names})) == found


def test_norms_by_their_names():
    for pair in (
        ("q_norm", "k_norm"),
        ("q_layernorm", "k_layernorm"),
        ("norm_q", "norm_k"),
        ("query_norm", "key_norm"),
    ):
        assert norms(nn.ModuleDict({name: nn.Identity() for name in ("norm", *reversed(pair))})) == pair
    assert norms(nn.ModuleDict({"norm": nn.Identity(), "q_norm": nn.Identity()})) is None


def test_attention_of_another_kind_is_named():
    net = timm.create_model("pvt_v2_b0")
    with pytest.raises(
        ValueError, match=r"no attention layer .* not understood: stages\.0\.blocks\.0\.attn \(Attention\)"
    ):
        attention_layers(net)
