"""The table of models in docs/kv-cache.md."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from eigenscope.kv import Exact, SpectralCache
from eigenscope.kv.cache.unrotated_keys import ROTARY_CLASSES, UnrotatedKeys

DOCS = Path(__file__).parents[4] / "docs" / "kv-cache.md"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # logits far apart, so that no tie decides
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
TRIED = {  # model type, rotation, options, channels of 16 that are turned
    "llama": ("llama", "default", {}, 16),
    "llama, llama3": ("llama", "llama3", {"rope": LLAMA3}, 16),
    "mistral": ("mistral", "default", {"sliding_window": None}, 16),
    "qwen2": ("qwen2", "default", {}, 16),
    "qwen2, yarn": ("qwen2", "yarn", {"rope": {"factor": 4.0, "original_max_position_embeddings": 64}}, 16),
    "qwen3": ("qwen3", "default", {"head_dim": 16}, 16),
    "gemma": ("gemma", "default", {"head_dim": 16}, 16),
    "phi": ("phi", "default", {"rope": {"partial_rotary_factor": 0.5}}, 8),
    "phi, norms of queries and keys": ("phi", "default", {"qk_layernorm": True}, 8),
    "phi3": ("phi3", "default", {}, 16),
    "phi3, three quarters": ("phi3", "default", {"rope": {"partial_rotary_factor": 0.75}}, 12),
}
REFUSED = {  # model type, rotation, options, message
    "mistral with a window": ("mistral", "default", {"sliding_window": 32}, "layer 0 is of type 'sliding_attention'"),
    "phi3 with a window": ("phi3", "default", {"sliding_window": 32}, "layer 0 is of type 'sliding_attention'"),
    "gemma2": ("gemma2", "default", {}, "of type 'sliding_attention'"),
    "llama, dynamic": ("llama", "dynamic", {"rope": {"factor": 2.0}}, "rope_type must be .* got 'dynamic'"),
    "phi3, longrope": ("phi3", "longrope", {"rope": LONGROPE}, "rope_type must be .* got 'longrope'"),
    "gpt_neox": ("gpt_neox", "default", {}, "model_type must be .* got 'gpt_neox'"),
}


def config_of(model_type, rope_type, options):
    options = dict(options)
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0} | options.pop("rope", {})
    return AutoConfig.for_model(model_type, **SIZES | {"rope_parameters": rope} | options)


@pytest.mark.parametrize("name", TRIED)
@torch.no_grad()
def test_tokens_are_those_of_a_dynamic_cache(name):
    model_type, rope_type, options, turned = TRIED[name]
    torch.manual_seed(0)
    config = config_of(model_type, rope_type, options)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    ids = torch.randint(1, 64, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    prompt = {"input_ids": ids * mask, "attention_mask": mask}
    cache = SpectralCache(config, codec=Exact(), sinks=2, window=4, block=8)
    asked = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    given = net.generate(**prompt, **asked, past_key_values=cache)
    plain = net.generate(**prompt, **asked, past_key_values=DynamicCache())
    assert given.sequences.equal(plain.sequences)
    torch.testing.assert_close(given.logits, plain.logits, atol=1e-9, rtol=1e-9)
    assert cache.layers[0].blocks == 5
    keys = torch.randn(2, 2, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frame = UnrotatedKeys(config)
    assert 2 * len(frame.frequencies) == turned
    rotated = torch.empty_like(keys)
    frame.redo(frame.undo(keys, 7), 7, out=rotated)
    torch.testing.assert_close(rotated, keys, atol=1e-13, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", TRIED)
def test_keys_are_stored_as_they_were_before_rotation(name):
    """The same token at every position has one key, however the model turns it."""
    model_type, rope_type, options, _ = TRIED[name]
    torch.manual_seed(0)
    config = config_of(model_type, rope_type, options | {"num_hidden_layers": 1})
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    cache = DynamicCache()
    net(torch.full((1, 20), 5), past_key_values=cache)
    keys = cache.layers[0].keys
    unrotated = UnrotatedKeys(config).undo(keys, 0)
    assert not keys.allclose(keys[:, :, :1], atol=0.05)
    # the model's table of cosines is float32
    torch.testing.assert_close(unrotated, unrotated[:, :, :1].expand_as(keys), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name):
    model_type, rope_type, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        SpectralCache(config_of(model_type, rope_type, options))


def test_the_table_in_the_documentation_has_what_was_tried():
    rows = re.findall(r"^\| `([^`]+)`(.*?) \| (yes|refused) \|", DOCS.read_text(), flags=re.MULTILINE)
    documented = {kind + rest: verdict for kind, rest, verdict in rows}
    assert documented == dict.fromkeys(TRIED, "yes") | dict.fromkeys(REFUSED, "refused")
    assert {kind for kind, *_ in TRIED.values()} == set(ROTARY_CLASSES)
