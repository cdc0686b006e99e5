import copy
import gc
import weakref

import pytest
import torch
from transformers import AutoConfig

from eigenscope.kv import (
    CacheFits,
    Exact,
    KVCodec,
    LowRankInt8,
    PooledCodec,
    ScoreAwareCodec,
    SpectralCache,
    TransformCodec,
    UniformInt,
    relative_error,
)

SMALL = {"sinks": 4, "window": 8, "block": 16}
LOSSY = {"reference": LowRankInt8(2), "uniform": UniformInt(4), "transform": TransformCodec(bits_per_element=4)}


def random_states(batch=2, tokens=100, heads=2, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, tokens, d, generator=generator) for _ in "kv")


def config(layers=1, d=16):
    return AutoConfig.for_model("llama", num_hidden_layers=layers, num_key_value_heads=2, head_dim=d)


def one_layer(codec=None, **options):
    return SpectralCache(config(), codec or Exact(), **SMALL | options)


@pytest.mark.parametrize("name", LOSSY)
def test_new_tokens_window_and_sinks_are_exact_and_blocks_are_not(name):
    cache = one_layer(LOSSY[name])
    K, V = random_states()
    assert torch.equal(cache.update(K, V, 0)[0], K)
    more = random_states(tokens=3, seed=1)
    for full, old, new in zip(cache.update(*more, 0), (K, V), more, strict=True):
        assert torch.equal(full[:, :, :4], old[:, :, :4])
        assert torch.equal(full[:, :, 84:], torch.cat([old, new], 2)[:, :, 84:])  # 4 + 5 blocks of 16, the tail
        errors = (full[:, :, 4:84] - old[:, :, 4:84]).norm(dim=-1) / old[:, :, 4:84].norm(dim=-1)
        assert errors.min() > 1e-3


def test_raw_keys_and_values_are_freed():
    cache = one_layer(TransformCodec(bits_per_element=2))
    K, V = random_states(tokens=400)
    raw = [weakref.ref(K.untyped_storage()), weakref.ref(V.untyped_storage())]
    full = cache.update(K, V, 0)
    del K, V, full
    gc.collect()
    assert raw[0]() is None
    assert raw[1]() is None
    report = cache.report()
    layer = cache.layers[0]
    assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4
    assert report.fraction_saved > 0.7
    full = cache.update(*random_states(tokens=1), 0)
    del full
    assert cache.report().stored <= report.stored + 2 * 2 * 2 * 16 * 4


def test_half_precision_stays_half():
    cache = one_layer(UniformInt(8))
    K, V = (X.to(torch.bfloat16) for X in random_states())
    cache.update(K, V, 0)
    keys, values = cache.update(K[:, :, :1], V[:, :, :1], 0)
    assert keys.dtype == values.dtype == torch.bfloat16
    assert relative_error(K.float(), keys[:, :, :100].float(), dim=None) < 0.01
    assert cache.report().baseline == 2 * 2 * 2 * 101 * 16 * 2


def test_a_copy_goes_its_own_way():
    cache, states = one_layer(), random_states()
    cache.set_padding((torch.arange(100) >= torch.tensor([[0], [5]])).long())
    cache.update(*states, 0)
    twin = copy.deepcopy(cache)
    expected = cache.update(*random_states(tokens=50, seed=1), 0)[0]
    cache.reset()
    assert torch.equal(twin.update(*random_states(tokens=50, seed=1), 0)[0], expected)


def published(tokens):
    """Half-precision rotated keys and values with spectra published for language models, 8 heads of 128."""
    generator = torch.Generator().manual_seed(0)
    K, V = (
        torch.randn(1, 8, tokens, 128, generator=generator)
        * ((torch.arange(128) + shift) ** power).sqrt()
        @ torch.linalg.qr(torch.randn(8, 128, 128, generator=generator)).Q
        for shift, power in ((3.2, -1.86), (22.5, -2.30))
    )
    rotated = torch.empty_like(K)
    SpectralCache(config(d=128)).frame.redo(K, 0, out=rotated)
    return rotated.half(), (8 * V).half()


def errors_in(cache, K, V, coded):
    """Of keys and values of the coded slots, as the next token sees them."""
    seen = cache.update(K[:, :, :1], V[:, :, :1], 0)
    return [
        float(relative_error(exact[:, :, coded].float(), full[:, :, coded].float(), dim=None))
        for exact, full in zip((K, V), seen, strict=True)
    ]


def test_the_defaults_on_published_spectra():
    """The window is left out of the errors, not of the bytes."""
    K, V = published(4164)
    old = KVCodec(TransformCodec(bits_per_element=3.0), TransformCodec(bits_per_element=2.0))
    for codec, ratio, most in ((None, 5.6, (0.16, 0.19)), (old, 5.8, (0.095, 0.27))):
        cache = SpectralCache(config(d=128), codec)
        cache.update(K, V, 0)
        assert cache.report().compression_ratio > ratio
        errors = errors_in(cache, K, V, slice(4, 4100))
        assert errors[0] < most[0]
        assert errors[1] < most[1]


@pytest.mark.parametrize(("times", "most_keys", "most_values"), [(8.5, 0.22, 0.32), (12.0, 0.29, 0.43)])
def test_everything_coded_on_published_spectra(times, most_keys, most_values):
    K, V = published(4096)
    codec = TransformCodec(bits_per_element=16 / (1.001 * times), tokens=4096)  # the frequencies of the rotation count
    cache = SpectralCache(config(d=128), codec, sinks=0, window=0)
    cache.update(K, V, 0)
    assert cache.report().compression_ratio >= times
    keys, values = errors_in(cache, K, V, slice(None, 4096))
    assert keys <= most_keys
    assert values <= most_values


def test_an_empty_cache_has_a_report():
    report = one_layer().report()
    assert (report.tokens, report.baseline, report.compression_ratio, report.fraction_saved) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"sinks": 8}, "sinks"),
        ({"sinks": 0}, "sinks"),
        ({"window": 16}, "tail"),
        ({"block": 40}, "codes"),
        ({"codec": LowRankInt8(4)}, "codes"),
        ({"codec": KVCodec(LowRankInt8(2), LowRankInt8(4))}, "codes"),
        ({"codec": KVCodec(LowRankInt8(4), LowRankInt8(2))}, "codes"),
    ],
    ids=str,
)
def test_each_option_changes_what_is_held(option, changed):
    reports = []
    for options in ({"codec": LowRankInt8(2)}, {"codec": LowRankInt8(2)} | option):
        cache = one_layer(**options)
        cache.update(*random_states(tokens=92), 0)  # 4 sinks, 5 blocks, 8 tokens of window
        reports.append(cache.report())
    assert reports[0].tiers()[changed] != reports[1].tiers()[changed]


def test_each_codec_of_a_pair_goes_to_its_side():
    cache = one_layer(KVCodec(keys=LowRankInt8(2), values=Exact()))
    K, V = random_states()
    cache.update(K, V, 0)
    keys, values = cache.update(*random_states(tokens=1), 0)
    assert torch.equal(values[:, :, :100], V)
    assert relative_error(K, keys[:, :, :100], dim=None) > 0.1


def test_what_was_learned_before_is_used_and_survives_reset():
    codec = TransformCodec(bits_per_element=3)
    source = one_layer(codec)
    assert source.fits is None
    source.update(*random_states(tokens=300), 0)
    learned = source.fits
    fresh, given = one_layer(codec), SpectralCache(config(), fits=learned, **SMALL)
    for cache in (fresh, given):
        cache.update(*random_states(seed=5), 0)
    assert given.fits.layers[0] is learned.layers[0]
    assert not torch.equal(given.layers[0].codes[0].planes, fresh.layers[0].codes[0].planes)
    for cache in (fresh, given):
        cache.reset()
    assert given.fits.layers[0] is learned.layers[0]
    assert fresh.fits is None


@pytest.mark.parametrize("removed", [1, 8, 17, 30, 70, 97, 100, 130])
def test_crop_keeps_the_tokens_before(removed):
    cache, (K, V) = one_layer(), random_states()
    cache.update(K, V, 0)
    cache.crop(-removed)
    left = max(0, 100 - removed)
    assert cache.get_seq_length() == left
    more = random_states(tokens=60, seed=1)
    for full, old, new in zip(cache.update(*more, 0), (K, V), more, strict=True):
        torch.testing.assert_close(full, torch.cat([old[:, :, :left], new], 2), atol=1e-5, rtol=0)
    assert cache.get_seq_length() == left + 60
    cache.crop(0)
    assert cache.get_seq_length() == left + 60


def test_crop_into_blocks_leaves_those_before_as_codes_and_frees_the_rest():
    cache, states = one_layer(UniformInt(4)), random_states()
    cache.update(*states, 0)
    codes = cache.layers[0].codes[0]
    seen = cache.update(*random_states(tokens=1), 0)[0]
    cache.crop(-40)
    layer = cache.layers[0]
    assert (layer.blocks, layer.keys.shape[2]) == (3, 61 - 4 - 48)
    assert torch.equal(layer.codes[0].planes, codes.planes[:, :3])
    assert layer.codes[0].planes.untyped_storage().nbytes() == layer.codes[0].planes.numel()
    torch.testing.assert_close(layer.keys, seen[:, :, 52:61])


@pytest.mark.parametrize(
    ("padding", "length"), [(6, 2), (6, 8), (6, 10), (6, 11), (6, 20), (6, 40), (40, 42), (40, 44), (40, 60)]
)
def test_crop_of_a_padded_batch_keeps_its_sinks(padding, length):
    cache, (K, V) = one_layer(), random_states()
    mask = (torch.arange(100) >= torch.tensor([[0], [padding]])).long()
    cache.set_padding(mask)
    cache.update(K, V, 0)
    cache.crop(length - 100)
    more = random_states(tokens=60, seed=1)
    cache.update(*more, 0)
    full = cache.update(*random_states(tokens=1, seed=2), 0)
    for got, old, new in zip(full, (K, V), more, strict=True):
        expected = torch.cat([old[:, :, :length], new], 2)
        torch.testing.assert_close(got[0, :, :-1], expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(got[1, :, padding:-1], expected[1, :, padding:], atol=1e-5, rtol=0)


def test_drafts_that_are_rolled_back_were_not_compressed():
    cache, (K, V) = one_layer(LowRankInt8(1)), random_states(tokens=27)
    cache.activate_past_recording()
    cache.update(K, V, 0)
    cache.update(*random_states(tokens=20, seed=1), 0)  # a draft that would fill a block
    cache.crop(-20)
    keys, values = cache.update(*random_states(tokens=1, seed=2), 0)
    assert torch.equal(keys[:, :, :27], K)
    assert torch.equal(values[:, :, :27], V)
    cache.crop(0)
    assert cache.layers[0].blocks == 1
    for _ in range(40):  # and nothing is put off for ever where no crop comes
        cache.update(*random_states(tokens=1), 0)
    assert cache.layers[0].blocks == 3


@pytest.mark.parametrize(
    ("act", "rows"),
    [
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
    ],
    ids=["reorder", "repeat", "select", "mask"],
)
@pytest.mark.parametrize("tokens", [20, 100], ids=["not yet compressed", "compressed"])
@pytest.mark.parametrize("codec", [*LOSSY.values(), Exact()], ids=[*LOSSY, "exact"])
def test_sequences_are_reordered_in_every_tier(act, rows, tokens, codec):
    caches = [one_layer(codec), one_layer(codec)]
    for cache in caches:
        cache.set_padding((torch.arange(tokens) >= torch.tensor([[0], [5], [9]])).long())
        cache.update(*random_states(3, tokens), 0)
    act(caches[0])
    more = random_states(3, 1, seed=1)
    ours = caches[0].update(more[0][rows], more[1][rows], 0)
    theirs = caches[1].update(*more, 0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b[rows])


def test_an_empty_cache_is_left_alone():
    cache = one_layer()
    cache.reorder_cache(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.crop(-3)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_tells_generate_its_sizes():
    cache = one_layer()
    assert cache.get_mask_sizes(5, 0) == (5, 0)
    cache.update(*random_states(), 0)
    assert cache.get_mask_sizes(5, 0) == (105, 0)
    assert (cache.get_seq_length(), cache.get_max_length()) == (100, -1)
    assert not cache.is_compileable
    assert not cache.is_croppable
    assert cache.is_sliding == [False]


def test_sinks_of_padded_sequences_are_their_first_tokens():
    cache, (K, V) = one_layer(LowRankInt8(1)), random_states()
    cache.set_padding((torch.arange(100) >= torch.tensor([[0], [30]])).long())
    cache.update(K, V, 0)
    keys, values = cache.update(*random_states(tokens=1), 0)
    for full, old in ((keys, K), (values, V)):
        assert torch.equal(full[0, :, :4], old[0, :, :4])
        assert torch.equal(full[1, :, 30:34], old[1, :, 30:34])
        assert not torch.allclose(full[1, :, 34:38], old[1, :, 34:38], atol=0.1)


def test_padding_known_makes_codes_of_padded_batches_better():
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, 17) ** -1.0
    flat = torch.randn(4, 2, 300, 16, generator=generator) * scales
    mask = (torch.arange(300) >= torch.tensor([[0], [50], [100], [150]])).long()
    errors = {}
    for known in (True, False):
        cache = one_layer(TransformCodec(bits_per_element=3, tokens=100_000))
        cache.set_padding(mask)
        K = torch.empty_like(flat)
        cache.frame.redo(flat, 0, out=K)
        K = torch.where(mask[:, None, :, None].bool(), K, K[:1, :, :1])  # the same token in all places of padding
        if not known:
            cache.set_padding(torch.ones_like(mask))
        cache.update(K, flat, 0)
        decoded = cache.update(*random_states(4, 1), 0)[0][:, :, :300]
        keep = mask[:, None, :, None].bool().expand_as(K)
        errors[known] = float(relative_error(K[keep][None], decoded[keep][None], dim=None))
    assert errors[True] < 0.8 * errors[False]


def test_a_very_short_sequence_waits_for_its_sinks():
    cache, (K, V) = one_layer(), random_states()
    cache.set_padding((torch.arange(100) >= torch.tensor([[0], [98]])).long())
    cache.update(K, V, 0)
    assert cache.layers[0].blocks == 0
    more = random_states(tokens=2, seed=1)
    cache.update(*more, 0)
    assert cache.layers[0].blocks == 5
    keys = cache.update(*random_states(tokens=1), 0)[0]
    torch.testing.assert_close(keys[0, :, :100], K[0], atol=1e-5, rtol=0)
    assert torch.equal(keys[1, :, 98:102], torch.cat([K[1, :, 98:], more[0][1]], 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sinks": -1}, "sinks must be at least 0, got -1"),
        ({"window": -1}, "window must be at least 0, got -1"),
        ({"window": 64, "block": 32}, r"block must be at least 64 \(window\), got 32"),
        ({"window": 0, "block": 0}, "block must be at least 1"),
        ({"codec": 4}, "keys must be a Codec, got int"),
        ({"bits": 3.0}, "a codec has a budget of its own: give either codec or bits"),
        ({"codec": PooledCodec(3.0), "bits": 3.0}, "a PooledCodec says itself its bits and form"),
        ({"codec": PooledCodec(3.0), "fits": CacheFits({}, PooledCodec(3.0), ())}, "fits say themselves .* or codec"),
        ({"codec": ScoreAwareCodec(bits_per_element=4)}, "ScoreAwareCodec .* give fits"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        one_layer(**options)


def test_sliding_windows_are_refused_by_layer():
    with pytest.raises(ValueError, match="layer 0 is of type 'sliding_attention'"):
        SpectralCache(AutoConfig.for_model("mistral"))
    some = AutoConfig.for_model("qwen2", num_hidden_layers=4, use_sliding_window=True, max_window_layers=2)
    with pytest.raises(ValueError, match="layer 2 is of type 'sliding_attention'"):
        SpectralCache(some)


def test_keys_that_are_not_finite_are_named_by_layer():
    cache = SpectralCache(config(layers=2), LowRankInt8(2), **SMALL)
    K, V = random_states()
    K[0, 0, 50] = torch.nan
    cache.update(V, V, 0)
    with pytest.raises(ValueError, match=r"keys of layer 1: X must be finite, got NaN"):
        cache.update(K, V, 1)
    with pytest.raises(ValueError, match=r"values of layer 1: X must be finite, got NaN"):
        SpectralCache(config(layers=2), LowRankInt8(2), **SMALL).update(V, K, 1)


def test_padding_and_crop_say_what_is_wrong():
    cache = one_layer()
    with pytest.raises(ValueError, match=r"attention_mask must be \(B, n\)"):
        cache.set_padding(torch.ones(3))
    cache.set_padding((torch.arange(100) >= torch.tensor([[0], [30]])).long())
    with pytest.raises(ValueError, match="padding was set for 2 sequences, got 3"):
        cache.update(*random_states(3), 0)
    cache.update(*random_states(4), 0)  # as if beams had been made
    assert cache.frame.padding.tolist() == [0, 0, 30, 30]
    with pytest.raises(ValueError, match="while the cache is empty, got one of 100 tokens"):
        cache.set_padding(torch.ones(4, 3))
    with pytest.raises(ValueError, match="tokens_to_remove must be 0 or the negative of a number, got 5"):
        cache.crop(5)
