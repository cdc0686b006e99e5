import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eigenscope.nn import CausalTransformer, hook_points, llama_weights, observe
from eigenscope.nn.transformers.causal_transformer import rotate

SMALL = {"vocabulary": 11, "width": 16, "num_heads": 4, "mlp_width": 24}


def network(seed=0, **options):
    torch.manual_seed(seed)
    net = CausalTransformer(**SMALL | options).double()
    with torch.no_grad():
        for parameter in net.parameters():  # biases and norms too, so that none can be left out unnoticed
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def sequences(count=3, length=20, seed=1):
    return torch.randint(11, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_the_arithmetic_is_llamas(key_heads):
    net = network(num_key_heads=key_heads, rope_base=500.0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        attention_bias=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config).double().eval()
    theirs.load_state_dict(llama_weights(net))
    tokens = sequences()
    # the library computes angles in float32 whatever the weights are in
    torch.testing.assert_close(net(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("token", [0, 7, 19])
def test_later_tokens_do_not_change_earlier_outputs(token):
    net, tokens = network(), sequences()
    changed = tokens.clone()
    changed[:, token] = (tokens[:, token] + 1) % 11
    before, after = net(tokens), net(changed)
    assert torch.equal(before[:, :token], after[:, :token])
    assert not torch.isclose(before[:, token:], after[:, token:]).all(-1).any()


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("past_length", [1, 13, 19])
def test_with_a_past_as_without(key_heads, past_length):
    net, tokens = network(num_key_heads=key_heads), sequences()
    with observe(net, "blocks.*.attention.keys", "blocks.*.attention.values") as seen:
        net(tokens[:, :past_length])
    past = [tuple(seen[f"blocks.{i}.attention.{kind}"] for kind in ("keys", "values")) for i in range(2)]
    assert past[0][0].shape == (3, key_heads, past_length, 4)
    torch.testing.assert_close(net(tokens[:, past_length:], past), net(tokens)[:, past_length:], rtol=0, atol=1e-12)


def test_the_past_is_looked_at():
    net, tokens = network(), sequences()
    with observe(net, "*.keys", "*.values") as seen:
        net(tokens[:, :10])
    past = [(seen[f"blocks.{i}.attention.keys"], seen[f"blocks.{i}.attention.values"] + 1) for i in range(2)]
    assert not torch.allclose(net(tokens[:, 10:], past), net(tokens)[:, 10:], atol=1e-3)


def test_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    near, far = (
        (rotate(q, torch.arange(5) + shift, 100.0) * rotate(k, torch.arange(5) + shift + 3, 100.0)).sum(-1)
        for shift in (0, 1000)
    )
    torch.testing.assert_close(near, far, rtol=0, atol=1e-10)
    assert not torch.allclose(near, (q * k).sum(-1))
    torch.testing.assert_close(rotate(q, torch.zeros(5, dtype=torch.int64), 100.0), q)


def test_a_plane_turns_by_its_frequency():
    x = torch.zeros(1, 4, dtype=torch.float64)
    x[0, 1] = 1.0  # the second of two planes, channels 1 and 3, at base^(-1/2) radians a token
    angle = torch.tensor(7 * 100.0**-0.5, dtype=torch.float64)
    expected = torch.stack([torch.zeros_like(angle), angle.cos(), torch.zeros_like(angle), angle.sin()])
    torch.testing.assert_close(rotate(x, torch.tensor([7]), 100.0)[0], expected)


def test_an_untrained_head_looks_at_the_token_before():
    torch.manual_seed(0)
    net = CausalTransformer(vocabulary=50, width=64, num_heads=2)
    attention = net.blocks[0].attention
    bias_q, bias_k = attention.to_queries.bias[None, :32], attention.to_keys.bias[None, :32]
    places = torch.arange(40)
    q, k = rotate(bias_q.expand(40, -1), places, 10_000.0), rotate(bias_k.expand(40, -1), places, 10_000.0)
    scores = q[-1] @ k.T / 32**0.5
    assert scores.argmax() == 38
    torch.testing.assert_close(scores[38] - scores[[37, 39]], torch.tensor([3.0, 3.0]), rtol=1e-4, atol=0)
    assert not net.blocks[1].attention.to_queries.bias.any()


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_attention_starts_by_copying(key_heads):
    torch.manual_seed(0)
    net = CausalTransformer(vocabulary=5, width=32, num_heads=4, num_key_heads=key_heads)
    for block in net.blocks:
        values = block.attention.to_values.weight.view(key_heads, 1, 8, 32).expand(-1, 4 // key_heads, -1, -1)
        assert torch.equal(block.attention.projection.weight, values.reshape(32, 32).T)
    assert torch.equal(net.head.weight, net.embedding.weight)
    assert net.head.weight is not net.embedding.weight


def test_probes():
    kinds = ("queries", "keys", "values")
    assert list(hook_points(network())) == [f"blocks.{i}.attention.{kind}" for i in range(2) for kind in kinds]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"mlp_width": 0}, "mlp_width must be at least 1, got 0"),
        ({"num_heads": 3}, "num_heads must divide width 16 into heads of even width, got 3"),
        ({"num_heads": 16}, "num_heads must divide width 16 into heads of even width, got 16"),
        ({"num_key_heads": 3}, "num_key_heads must divide num_heads 4, got 3"),
        ({"num_key_heads": 0}, "num_key_heads must be at least 1, got 0"),
        ({"rope_base": 1.0}, "rope_base must be above 1, got 1.0"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        CausalTransformer(**SMALL | wrong)
