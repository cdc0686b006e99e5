import math

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys, rotary_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def config(model_type="llama", rope=None, **options):
    rope = {"rope_theta": 10000.0, "rope_type": "default"} | (rope or {})
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return AutoConfig.for_model(
        model_type, **sizes | {"rope_parameters": rope, "max_position_embeddings": 128} | options
    )


def keys(tokens=24, batch=2):
    return torch.randn(batch, 2, tokens, 16, generator=torch.Generator().manual_seed(0))


def rotated_by_the_model(config, X, positions):
    cos, sin = LlamaRotaryEmbedding(config)(X, positions)
    return apply_rotary_pos_emb(X, X, cos, sin)[1]


@pytest.mark.parametrize("rope", [None, LINEAR, LLAMA3, YARN], ids=["default", "linear", "llama3", "yarn"])
def test_undoes_what_the_model_rotates_and_does_it_again(rope):
    settings, X = config(rope=rope), keys()
    rotated = rotated_by_the_model(settings, X, torch.arange(5, 29)[None])
    frame = UnrotatedKeys(settings)
    torch.testing.assert_close(frame.undo(rotated, 5), X, atol=1e-5, rtol=0)
    again = torch.empty_like(X)
    frame.redo(X, 5, out=again)
    torch.testing.assert_close(again, rotated, atol=1e-5, rtol=0)


def test_scaled_keys_of_yarn_are_brought_back_to_their_size():
    factor = rotary_frequencies(config(rope=YARN))[1]
    assert factor == pytest.approx(0.1 * math.log(4) + 1)
    X = keys()
    rotated = torch.empty_like(X)
    frame = UnrotatedKeys(config(rope=YARN))
    frame.redo(X, 0, out=rotated)
    torch.testing.assert_close(rotated.norm(dim=-1), factor * X.norm(dim=-1))
    torch.testing.assert_close(frame.undo(rotated, 0).norm(dim=-1), X.norm(dim=-1))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_default_frequencies_are_those_of_the_paper(model_type):
    frequencies, factor = rotary_frequencies(config(model_type))
    torch.testing.assert_close(frequencies, 10000.0 ** (-torch.arange(0, 16, 2) / 16))
    assert factor == 1


def test_padding_counts_positions_from_the_first_token():
    settings, X = config(), keys()
    padding = torch.tensor([0, 7])
    positions = torch.arange(24)[None] - padding[:, None]
    rotated = rotated_by_the_model(settings, X, positions)
    frame = UnrotatedKeys(settings)
    frame.set_padding(padding)
    torch.testing.assert_close(frame.undo(rotated, 0), X, atol=1e-5, rtol=0)
    frame.rows(lambda t: t.flip(0))
    torch.testing.assert_close(frame.undo(rotated.flip(0), 0), X.flip(0), atol=1e-5, rtol=0)
    frame.set_padding(torch.tensor([0, 0]))
    assert frame.padding is None
    assert not torch.allclose(frame.undo(rotated, 0)[1], X[1], atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_dtype_and_computes_in_no_less_than_float32(dtype):
    X = keys().to(dtype)
    frame = UnrotatedKeys(config())
    rotated = torch.empty_like(X)
    frame.redo(X, 1000, out=rotated)
    back = frame.undo(rotated, 1000)
    assert back.dtype == dtype
    exact = {torch.float64: 1e-14, torch.bfloat16: 3 * 2.0**-8}[dtype]
    assert (back - X).norm() / X.norm() < exact


def test_tables_are_counted_until_they_are_forgotten():
    frame = UnrotatedKeys(config())
    assert frame.nbytes() == 8 * 4
    frame.undo(keys(), 0)
    assert frame.nbytes() == 8 * 4 + 2 * 24 * 8 * 4
    frame.forget()
    assert frame.nbytes() == 8 * 4


@pytest.mark.parametrize(
    ("rope", "name"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
        (
            {
                "rope_type": "longrope",
                "factor": 2.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 32,
            },
            "longrope",
        ),
        ({"rope_type": "proportional"}, "proportional"),
    ],
)
def test_refuses_rotations_that_change_with_the_length_or_are_unknown(rope, name):
    with pytest.raises(ValueError, match=f"rope_type must be .* got '{name}'"):
        UnrotatedKeys(config(rope=rope))


@pytest.mark.parametrize("model_type", ["gptj", "cohere", "gpt2"])
def test_refuses_models_that_rotate_in_another_way_or_not_at_all(model_type):
    with pytest.raises(ValueError, match=f"model_type must be .* got '{model_type}'"):
        UnrotatedKeys(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("rope", [LINEAR, YARN], ids=["linear", "yarn"])
def test_a_rotation_of_the_first_channels_leaves_the_others(rope):
    settings, X = config(rope=rope | {"partial_rotary_factor": 0.5}), keys()
    rotated = X.clone()
    rotated[..., :8] = rotated_by_the_model(settings, X[..., :8], torch.arange(5, 29)[None])
    frame = UnrotatedKeys(settings)
    torch.testing.assert_close(frame.undo(rotated, 5), X, atol=1e-5, rtol=0)
    assert frame.undo(rotated, 5)[..., 8:].equal(X[..., 8:])
    again = torch.empty_like(X)
    frame.redo(X, 5, out=again)
    torch.testing.assert_close(again, rotated, atol=1e-5, rtol=0)


def test_refuses_a_version_without_what_it_reads(monkeypatch):
    monkeypatch.delattr("transformers.models.llama.modeling_llama.LlamaRotaryEmbedding")
    with pytest.raises(ValueError, match=r"'llama' is read from .* which transformers 5\..* lacks: .*LlamaRotaryEmb"):
        UnrotatedKeys(config())


def test_head_width_defaults_to_hidden_size_over_heads():
    plain = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    assert len(rotary_frequencies(plain)[0]) == 8
