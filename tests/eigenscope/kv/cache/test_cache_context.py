import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from eigenscope.kv import Exact, SpectralCache, UniformInt, spectral_cache

SMALL = {"sinks": 4, "window": 8, "block": 16}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double().eval()


def padded():
    ids = torch.randint(1, 64, (2, 50), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def generate(net, **options):
    return net.generate(**{**padded(), "max_new_tokens": 20, "do_sample": False, **options})


def hooks(net):
    return [name for name, module in net.named_modules() if module._forward_pre_hooks or module._forward_hooks]


def test_generates_with_a_fresh_compressed_cache_each_time(net):
    expected = generate(net)
    with spectral_cache(net, Exact(), **SMALL) as run:
        assert torch.equal(generate(net), expected)
        first = run.cache
        assert first.frame.padding.tolist() == [0, 9]
        assert run.report().tokens == 69
        assert torch.equal(generate(net, num_beams=2), generate(net, num_beams=2))
        assert run.cache is not first
        assert run.cache.frame.padding.tolist() == [0, 0, 9, 9]
    assert run.cache is None
    assert run.report().sequences == 4


def test_prompt_lookup_rolls_its_drafts_back(net):
    ids = torch.randint(1, 64, (1, 6), generator=torch.Generator().manual_seed(1)).repeat(1, 10)
    options = {"max_new_tokens": 40, "do_sample": False, "prompt_lookup_num_tokens": 6}
    expected = net.generate(ids, **options)
    with spectral_cache(net, Exact(), **SMALL) as run:
        assert torch.equal(net.generate(ids, **options), expected)
        assert run.cache.layers[0].blocks > 3


def test_options_reach_the_cache(net):
    with spectral_cache(net, UniformInt(4), sinks=2, window=6, block=20) as run:
        generate(net)
        layer = run.cache.layers[0]
        assert (layer.sinks, layer.window, layer.block) == (2, 6, 20)
        assert layer.codec.keys == UniformInt(4)
        learned = run.cache.fits
    with spectral_cache(net, fits=learned, **SMALL) as run:
        generate(net)
        assert run.cache.fits.layers[1] is learned.layers[1]


@pytest.mark.parametrize("failing", [False, True])
def test_leaves_nothing_on_the_model(net, failing):
    before = set(vars(net)), hooks(net), generate(net)
    try:
        with spectral_cache(net, UniformInt(2), **SMALL):
            generate(net)
            assert hooks(net) == ["model"]
            if failing:
                raise KeyError("of the caller")
    except KeyError:
        assert failing
    assert (set(vars(net)), hooks(net)) == before[:2]
    result = generate(net, return_dict_in_generate=True)
    assert type(result.past_key_values) is DynamicCache
    assert torch.equal(result.sequences, before[2])


def test_a_cache_that_is_passed_stays_and_learns_where_sequences_start(net):
    ours, theirs = SpectralCache(net.config, Exact(), **SMALL), DynamicCache(config=net.config)
    with spectral_cache(net, UniformInt(2), **SMALL) as run:
        generate(net, past_key_values=theirs)
        assert run.cache is None
        generate(net, past_key_values=ours)
        assert run.cache is ours
    assert theirs.get_seq_length() == ours.get_seq_length() == 69
    assert ours.frame.padding.tolist() == [0, 9]


def test_a_conversation_goes_on_within_the_block(net):
    expected = generate(net, max_new_tokens=40)
    with spectral_cache(net, Exact(), **SMALL) as run:
        first = generate(net, return_dict_in_generate=True)
        cache = run.cache
        mask = torch.cat([padded()["attention_mask"], torch.ones(2, 20).long()], 1)
        again = generate(net, input_ids=first.sequences, attention_mask=mask, past_key_values=first.past_key_values)
        assert run.cache is cache
    assert torch.equal(again, expected)


def test_generation_without_a_cache_is_refused(net):
    called = r"LlamaModel of transformers \S+ was called without a cache \((past_key_values|cache)\)"
    with pytest.raises(ValueError, match=called), spectral_cache(net, UniformInt(2), **SMALL):
        generate(net, use_cache=False)
    assert not hooks(net)


def test_there_is_no_report_before_a_generation(net):
    with spectral_cache(net, UniformInt(2), **SMALL) as run:
        with pytest.raises(ValueError, match="nothing was generated"):
            run.report()
        generate(net)


@pytest.mark.parametrize(("tokens", "last"), [(0, "nothing was generated"), (3, "the last context was of 52 tokens")])
def test_a_block_in_which_nothing_was_compressed_is_an_error(net, tokens, last):
    said = f"nothing was compressed within spectral_cache: {last}.* when 132 are read"
    with pytest.raises(ValueError, match=said), spectral_cache(net, block=64, sinks=4, window=64):
        _ = tokens and generate(net, max_new_tokens=tokens)
    assert not hooks(net)


def test_another_error_is_not_hidden_by_it(net):
    with pytest.raises(KeyError, match="mine"), spectral_cache(net, **SMALL):
        raise KeyError("mine")


def test_refuses_what_it_cannot_replace_and_wrong_options_at_once(net):
    static = r"cache_implementation must not be set .* got a StaticCache"
    with pytest.raises(ValueError, match=static), spectral_cache(net, **SMALL):
        generate(net, cache_implementation="static")
    assert not hooks(net)
    with pytest.raises(ValueError, match="block must be at least 64"), spectral_cache(net, block=32):
        pass
    assert not hooks(net)


def test_without_transformers_the_codecs_work_and_the_cache_names_the_extra():
    program = """
import sys
import eigenscope.kv
assert "transformers" not in sys.modules
sys.modules["transformers"] = None
from eigenscope.kv import *
TransformCodec(bits_per_element=2)
for name in ("SpectralCache", "spectral_cache"):
    try:
        getattr(eigenscope.kv, name)
    except ImportError as error:
        assert "pip install eigenscope[hf]" in str(error), error
    else:
        raise SystemExit(name)
try:
    eigenscope.kv.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
