import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from eigenscope.kv import Exact, LowRankInt8, SpectralCache, TransformCodec, UniformInt, stored_tensors
from eigenscope.kv.codecs.low_rank_int8 import LowRankCode
from eigenscope.linalg import randomized_svd


class FullRank(LowRankInt8):
    """Its factors unrounded, which lose nothing at full rank."""

    def encode(self, X, fitted):
        B = randomized_svd(X, self.rank).Vh.contiguous()
        return LowRankCode(X.shape[-2], X.dtype, X @ B.mT, B, torch.ones(X.shape[:-2]))


SMALL = {"sinks": 4, "window": 8, "block": 16}
LOSSLESS = {"exact": Exact(), "full rank": FullRank(16)}
LOSSY = {"reference": LowRankInt8(2), "uniform": UniformInt(4), "transform": TransformCodec(bits_per_element=4)}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "sliding_window": None,
    "initializer_range": 0.3,  # logits far apart, so that no tie decides
}


def model(model_type="llama", heads=1, dtype=torch.float64, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | {"num_key_value_heads": heads} | options)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def prompt(batch=3, tokens=60, padded=True):
    ids = torch.randint(1, 64, (batch, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 7, 33)[:batch] if padded else ()):
        mask[row, :padding] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def logits_step_by_step(net, cache, ids, attention_mask, start):
    """Those of the prompt in one pass, and of the tokens from ``start`` on one by one."""
    positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
    parts = []
    for stop in [start, *range(start + 1, ids.shape[1] + 1)]:
        done = cache.get_seq_length()
        parts.append(
            net(
                ids[:, done:stop],
                attention_mask=attention_mask[:, :stop],
                position_ids=positions[:, done:stop],
                past_key_values=cache,
            ).logits
        )
    return torch.cat(parts, 1)


@pytest.mark.parametrize("codec", LOSSLESS.values(), ids=LOSSLESS.keys())
@pytest.mark.parametrize("heads", [1, 4], ids=["4 repeats", "1 repeat"])
@pytest.mark.parametrize(("batch", "padded"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
def test_logits_are_those_of_a_dynamic_cache(codec, heads, batch, padded, dtype, tolerance):
    net, inputs = model(heads=heads, dtype=dtype), prompt(batch, 80, padded)
    cache = SpectralCache(net.config, codec, **SMALL)
    if padded:
        cache.set_padding(inputs["attention_mask"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ours = logits_step_by_step(net, cache, ids, mask, 45)
    theirs = logits_step_by_step(net, DynamicCache(config=net.config), ids, mask, 45)
    assert cache.layers[0].blocks == 4
    real = mask.bool()
    assert theirs.std() > 1
    assert (ours[real] - theirs[real]).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(
    ("rope", "model_type"),
    [
        ({"rope_type": "default"}, "mistral"),
        ({"rope_type": "default"}, "qwen2"),
        ({"rope_type": "default"}, "qwen3"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, "llama"),
    ],
    ids=["mistral", "qwen2", "qwen3", "yarn"],
)
def test_other_models_and_rotations(rope, model_type):
    net = model(model_type, heads=2, rope_parameters={"rope_theta": 10000.0} | rope)
    inputs = prompt()
    renamed = {"ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    cache = SpectralCache(net.config, LOSSLESS["full rank"], **SMALL)
    cache.set_padding(inputs["attention_mask"])
    ours = logits_step_by_step(net, cache, **renamed, start=45)
    theirs = logits_step_by_step(net, DynamicCache(config=net.config), **renamed, start=45)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("codec", LOSSLESS.values(), ids=LOSSLESS.keys())
@pytest.mark.parametrize(
    ("batch", "how"),
    [
        (1, {}),
        (3, {}),
        (3, {"num_beams": 3}),
        (3, {"num_beams": 2, "num_return_sequences": 2}),
        (1, {"prompt_lookup_num_tokens": 10}),
        (3, {"prefill_chunk_size": 25}),
    ],
    ids=["greedy", "padded", "beams", "several beams returned", "prompt lookup", "chunks"],
)
def test_generates_what_a_dynamic_cache_does(codec, batch, how):
    net, inputs = model(), prompt(batch)
    if "prompt_lookup_num_tokens" in how:  # a text that repeats itself, so that drafts are found
        inputs = {"input_ids": inputs["input_ids"][:, :6].repeat(1, 10), "attention_mask": torch.ones(1, 60).long()}
    cache = SpectralCache(net.config, codec, **SMALL)
    cache.set_padding(inputs["attention_mask"])
    options = {"max_new_tokens": 40, "do_sample": False} | how
    ours = net.generate(**inputs, past_key_values=cache, **options)
    theirs = net.generate(**inputs, past_key_values=DynamicCache(config=net.config), **options)
    assert cache.layers[0].blocks > 2
    assert len(ours[0].unique()) > 3
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("codec", LOSSLESS.values(), ids=LOSSLESS.keys())
def test_conversation_goes_on_with_the_same_cache_and_starts_anew_after_reset(codec):
    net, inputs = model(), prompt()
    cache, theirs = SpectralCache(net.config, codec, **SMALL), DynamicCache(config=net.config)
    cache.set_padding(inputs["attention_mask"])
    more = torch.randint(1, 64, (3, 30), generator=torch.Generator().manual_seed(2))

    def turns(past):
        first = net.generate(**inputs, past_key_values=past, max_new_tokens=20, do_sample=False)
        ids = torch.cat([first, more], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 50).long()], 1)
        return net.generate(ids, attention_mask=mask, past_key_values=past, max_new_tokens=20, do_sample=False)

    expected = turns(theirs)
    assert torch.equal(turns(cache), expected)
    assert cache.get_seq_length() == theirs.get_seq_length() == 129
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.report().stored == cache.frame.frequencies.numel() * 4
    cache.set_padding(inputs["attention_mask"])
    assert torch.equal(turns(cache), expected)


@pytest.mark.parametrize("codec", LOSSY.values(), ids=LOSSY.keys())
def test_a_prompt_in_one_pass_sees_nothing_of_the_codec(codec):
    net, inputs = model(dtype=torch.float32), prompt()
    cache = SpectralCache(net.config, codec, **SMALL)
    with torch.no_grad():
        ours = net(**inputs, past_key_values=cache).logits
        theirs = net(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    step = {"attention_mask": torch.ones(3, 61).long(), "past_key_values": cache}
    assert torch.isfinite(net(torch.ones(3, 1).long(), **step).logits).all()


@pytest.mark.parametrize("codec", LOSSY.values(), ids=LOSSY.keys())
def test_later_tokens_change_nothing_before_them(codec):
    net, ids = model(), prompt(2, 80, padded=False)["input_ids"]
    mask = torch.ones_like(ids)
    other = ids.clone()
    other[:, 70] = 65 - other[:, 70]
    both = [
        logits_step_by_step(net, SpectralCache(net.config, codec, **SMALL), tokens, mask, 40) for tokens in (ids, other)
    ]
    torch.testing.assert_close(both[0][:, :70], both[1][:, :70], atol=0, rtol=0)
    assert (both[0][:, 70:] - both[1][:, 70:]).abs().amax(-1).min() > 1e-3


def test_all_ready_blocks_go_into_one_call_and_keys_go_in_unrotated():
    calls = []

    class Noting(Exact):
        def encode(self, X, fitted):
            calls.append(X)
            return super().encode(X, fitted)

    net = model(heads=2)
    cache = SpectralCache(net.config, Noting(), **SMALL)
    ids = prompt(1, 60, padded=False)["input_ids"]
    caught = []
    hook = net.model.layers[0].self_attn.k_proj.register_forward_hook(lambda m, i, out: caught.append(out))
    with hook, torch.no_grad():
        net(ids, past_key_values=cache)
    assert [tuple(X.shape) for X in calls] == [(1, 3, 2, 16, 16)] * 4  # 2 layers, keys and values
    before_rotation = caught[0].unflatten(-1, (2, 16)).transpose(1, 2)[:, :, 4:52]
    torch.testing.assert_close(
        calls[0].transpose(1, 2).flatten(2, 3), before_rotation, atol=1e-5, rtol=0
    )  # the model computes angles in fp32


@pytest.mark.parametrize("codec", [*LOSSY.values(), Exact()], ids=[*LOSSY, "exact"])
def test_bytes_reported_are_those_of_all_tensors_held_and_of_a_file_of_them(codec, tmp_path):
    net, inputs = model(heads=2, dtype=torch.float32), prompt(3, 130)
    cache = SpectralCache(net.config, codec, **SMALL)
    cache.set_padding(inputs["attention_mask"])
    net.generate(**inputs, past_key_values=cache, max_new_tokens=30, do_sample=False)
    layers = [{name: held for name, held in vars(layer).items() if name != "frame"} for layer in cache.layers]
    tensors = stored_tensors(layers, vars(cache.frame))
    unique = {tensor.data_ptr(): tensor for tensor in tensors.values() if tensor.numel()}
    report = cache.report()
    assert report.stored == pytest.approx(sum(t.numel() * t.element_size() for t in unique.values()), rel=1e-3)
    assert report.stored == sum(report.tiers().values())
    save_file({str(number): tensor for number, tensor in enumerate(unique.values())}, tmp_path / "cache")
    header = int.from_bytes((tmp_path / "cache").read_bytes()[:8], "little") + 8
    assert (tmp_path / "cache").stat().st_size - header == pytest.approx(report.stored, rel=1e-3)


def test_report_compares_with_the_cache_it_replaces():
    net, inputs = model(heads=2, dtype=torch.float32), prompt(3, 150)
    cache, theirs = SpectralCache(net.config, UniformInt(4), **SMALL), DynamicCache(config=net.config)
    for past in (cache, theirs):
        net.generate(**inputs, past_key_values=past, max_new_tokens=9, do_sample=False)
    report = cache.report()
    baseline = sum(t.numel() * 2 for layer in theirs.layers for t in (layer.keys, layer.values))
    assert report.baseline == baseline
    assert (report.tokens, report.sequences, report.coded) == (158, 3, 144)
    assert report.compression_ratio == pytest.approx(baseline / report.stored)
    assert report.fraction_saved == pytest.approx(1 - report.stored / baseline)
    assert report.sinks == 2 * 2 * 3 * 2 * 4 * 16 * 4  # layers, keys and values, B, H, sinks, d, bytes
    assert report.positions == 8 * 4  # frequencies alone: no table of angles outlives a forward pass
    assert report.tail == 2 * 2 * 3 * 2 * (158 - 4 - 9 * 16) * 16 * 4
    lines = str(report).splitlines()
    assert lines[0] == "3 × 158 tokens, 144 of them in compressed blocks"
    assert any(line.split() == ["codes", f"{report.codes:,}", "bytes"] for line in lines)
    assert any(line.split()[:3] == ["at", "16", "bits"] for line in lines)
    assert len({len(line) for line in lines[1:8]}) == 1
    assert lines[8] == f"{report.compression_ratio:.2f}× compression ratio, {100 * report.fraction_saved:.1f} % saved"
