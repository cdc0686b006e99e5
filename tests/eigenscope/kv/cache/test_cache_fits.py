import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from eigenscope.kv import (
    CacheFits,
    Exact,
    KVCodec,
    LowRankInt8,
    PooledCodec,
    SpectralCache,
    TransformCodec,
    UniformInt,
    fit_cache,
    load_sensitivities,
    nbytes,
    save_sensitivities,
    spectral_cache,
)
from eigenscope.kv.storage import load_tree, save_tree
from tests.eigenscope.kv.cache.test_model_types import SIZES

SMALL = {"sinks": 4, "window": 8, "block": 32}
CODECS = {
    "one budget": PooledCodec(5.0),
    "entropy coded": PooledCodec(5.0, entropy_coded=True),
    "transform": KVCodec.of(TransformCodec(bits_per_element=5.0)),
    "uniform": KVCodec(UniformInt(4, axis="channel"), UniformInt(4)),
    "low rank": KVCodec.of(LowRankInt8(8)),
    "exact": KVCodec.of(Exact()),
}


def model(**options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES | options)).eval()


def prompt(tokens=200, batch=1, seed=1):
    return torch.randint(1, 64, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def generate(net, ids, **options):
    return net.generate(ids, max_new_tokens=8, do_sample=False, **options)


@pytest.fixture(scope="module")
def net():
    return model()


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if dataclasses.is_dataclass(tree):
        return [leaf for field in dataclasses.fields(tree) for leaf in leaves(getattr(tree, field.name))]
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple | list) else []


@pytest.mark.parametrize("entropy_coded", [False, True])
def test_fits_come_back_as_they_were_and_are_used(net, tmp_path, entropy_coded):
    fits = fit_cache(net, prompt(400), bits=5.0, entropy_coded=entropy_coded)
    fits.save(tmp_path / "fits.safetensors")
    loaded = CacheFits.load(tmp_path / "fits.safetensors")
    ours, theirs = leaves(fits.layers), leaves(loaded.layers)
    assert len(ours) == len(theirs) > 10
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert nbytes(fits.layers) == nbytes(loaded.layers)  # what is shared is shared again
    assert (loaded.codec, loaded.model) == (fits.codec, fits.model)
    results = []
    for each in (fits, loaded):
        with spectral_cache(net, fits=each, **SMALL) as run:
            results.append(generate(net, prompt()))
            assert run.cache.fits.layers[0].keys is each.layers[0].keys  # nothing was learned from the prompt
            assert run.report().sensitivities == "the last 128 tokens of the prompt"
    assert torch.equal(*results)


@pytest.mark.parametrize("name", CODECS)
def test_a_saved_cache_goes_on_token_for_token(net, tmp_path, name):
    ids = prompt(batch=2)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    cache, file = SpectralCache(net.config, CODECS[name], **SMALL), tmp_path / "document.safetensors"
    cache.set_padding(mask)
    with torch.no_grad():
        net(ids * mask, attention_mask=mask, past_key_values=cache)
    cache.save(file)
    loaded = SpectralCache.load(file, net.config)
    assert loaded.report() == cache.report()
    more = prompt(60, batch=2, seed=3)
    with torch.no_grad():
        whole = torch.cat([mask, torch.ones_like(more)], 1)
        ours, theirs = (net(more, attention_mask=whole, past_key_values=each).logits for each in (cache, loaded))
    assert torch.equal(ours, theirs)
    assert loaded.layers[0].blocks == cache.layers[0].blocks > 0
    assert loaded.report() == cache.report()  # with the blocks that were compressed since


def test_a_saved_cache_goes_on_in_another_process(net, tmp_path):
    cache = SpectralCache(net.config, bits=5.0, **SMALL)
    with torch.no_grad():
        net(prompt(), past_key_values=cache)
    cache.save(tmp_path / "document.safetensors")
    question = torch.cat([prompt(), prompt(5, seed=7)], 1)
    expected = generate(net, question, past_key_values=cache)
    net.save_pretrained(tmp_path / "net")
    program = f"""
import torch
from transformers import AutoModelForCausalLM
from eigenscope.kv import SpectralCache
torch.set_num_threads(1)
net = AutoModelForCausalLM.from_pretrained({str(tmp_path / "net")!r}).eval()
cache = SpectralCache.load({str(tmp_path / "document.safetensors")!r}, net.config)
question = torch.tensor({question.tolist()})
print(net.generate(question, past_key_values=cache, max_new_tokens=8, do_sample=False).tolist())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == expected.tolist()


def test_empty_and_shared_tensors_come_back_as_they_were(tmp_path):
    shared = torch.arange(3)
    tree = {"a": [torch.zeros(0, 4), shared, shared[1:], torch.zeros(0, dtype=torch.int16)], "b": (shared, None, 2.5)}
    save_tree(tmp_path / "tree", "test", tree)
    loaded = load_tree(tmp_path / "tree", "test")
    assert [(x.shape, x.dtype) for x in loaded["a"]] == [(x.shape, x.dtype) for x in tree["a"]]
    assert all(torch.equal(x, y) for x, y in zip(loaded["a"], tree["a"], strict=True))
    assert loaded["b"][0] is loaded["a"][1]
    assert loaded["b"][1:] == (None, 2.5)


def test_sensitivities_are_kept_in_a_file(net, tmp_path):
    found = fit_cache(net, prompt(400)).sensitivities
    save_sensitivities(tmp_path / "net.safetensors", found)
    loaded = load_sensitivities(tmp_path / "net.safetensors")
    assert all(torch.equal(x, y) for x, y in zip(leaves(found.keys), leaves(loaded.keys), strict=True))
    with spectral_cache(net, sensitivities=loaded, **SMALL) as run:
        generate(net, prompt())
        assert run.report().sensitivities.startswith("net.safetensors")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 3}, "fits must be of this model, whose layers is 3, got .* whose layers is 2"),
        ({"num_key_value_heads": 4}, "whose key heads is 4, got .* is 2"),
        ({"head_dim": 32}, "whose channels is 32, got .* is 16"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "whose rotation is"),
    ],
)
def test_fits_of_another_model_are_refused(net, other, message):
    fits = fit_cache(net, prompt(400), bits=5.0)
    with pytest.raises(ValueError, match=message):
        SpectralCache(model(**other).config, fits=fits)


def test_the_name_of_a_model_counts_where_both_have_one(net, tmp_path):
    fits = fit_cache(net, prompt(400), bits=5.0)
    named = dataclasses.replace(fits, model=fits.model | {"name": "Little"})
    config = AutoConfig.for_model("llama", **SIZES)
    SpectralCache(config, fits=named)
    config.name_or_path = "somebody/Little"
    SpectralCache(config, fits=named)
    config.name_or_path = "somebody/Large"
    with pytest.raises(ValueError, match=r"fits must be of this model, whose name is 'Large', got .* is 'Little'"):
        SpectralCache(config, fits=named)


def test_damaged_and_other_files_are_named(net, tmp_path):
    file = tmp_path / "fits.safetensors"
    with pytest.raises(FileNotFoundError, match=f"fits: there is no file {file}"):
        CacheFits.load(file)
    fits = fit_cache(net, prompt(400), bits=5.0)
    fits.save(file)
    with pytest.raises(ValueError, match="must be eigenscope kv cache, version 1, got eigenscope kv 1 fits"):
        SpectralCache.load(file, net.config)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        CacheFits.load(file)
    broken = bytearray(whole)
    broken[-5] ^= 1
    file.write_bytes(broken)
    with pytest.raises(ValueError, match="is damaged: its checksum is not that of what it holds"):
        CacheFits.load(file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="must be eigenscope kv fits, version 1, got None None None"):
        CacheFits.load(file)
    assert load_file(file)["a"].tolist() == [0, 0]


def test_what_cannot_be_kept_without_code_is_refused(net, tmp_path):
    class Mine(Exact):
        pass

    cache = SpectralCache(net.config, Mine(), **SMALL)
    with pytest.raises(
        TypeError, match="a Mine cannot be saved in a file that executes no code; known are Bases, Code,"
    ):
        cache.save(tmp_path / "cache.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tokens", [torch.zeros(1, 0, dtype=torch.long), torch.ones(1, 20).long(), torch.ones(1, 400)])
def test_an_empty_calibration_is_refused(net, tokens):
    with pytest.raises(ValueError, match=r"tokens must be \(B, T\) numbers of at least 36 calibration tokens"):
        fit_cache(net, tokens)
