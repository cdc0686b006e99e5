import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from eigenscope.kv import SpectralCache, measure_sensitivities, spectral_cache
from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys
from tests.eigenscope.kv.cache.test_cache_fits import SIZES, SMALL, prompt

SINKS, LAST = 4, 64


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).double().eval()


@torch.no_grad()
def read(net, ids):
    cache = DynamicCache()
    net(ids, past_key_values=cache)
    return [[getattr(layer, name) for layer in cache.layers] for name in ("keys", "values")]


@torch.no_grad()
def divergence(net, states, ids):
    """KL of the predictions of tokens after a cache from those after the exact one, summed."""
    logs = []
    for keys, values in states:
        cache = DynamicCache()
        for layer, pair in enumerate(zip(keys, values, strict=True)):
            cache.update(*pair, layer)
        logs.append(net(ids, past_key_values=cache).logits.log_softmax(-1))
    p, q = logs
    return float((p.exp() * (p - q)).sum())


def measured(net, ids, exact, passes=20):
    frame, inputs = UnrotatedKeys(net.config), {"input_ids": ids[:, -LAST:]}
    found = [measure_sensitivities(net, inputs, *exact, frame, sinks=SINKS, seed=seed) for seed in range(passes)]
    return {
        side: [torch.stack([getattr(each, side)[layer].weight for each in found]).mean(0) for layer in range(2)]
        for side in ("keys", "values")
    }


@pytest.mark.parametrize("side", ["keys", "values"])
def test_weights_predict_what_independent_errors_cost(net, side):
    """½ w times the mean of ‖e‖² is the KL of small independent errors along the covariance, whatever the layer."""
    ids = prompt(200)
    exact = read(net, ids[:, :-LAST])
    weights, frame = measured(net, ids, exact)[side], UnrotatedKeys(net.config)
    which = ("keys", "values").index(side)
    for layer in range(2):
        x = exact[which][layer]
        plain = frame.undo(x, 0) if side == "keys" else x
        centred = (plain - plain[:, :, SINKS:].mean(2, keepdim=True))[:, :, SINKS:]
        predicted, found = 0.0, 0.0
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            tokens = centred.shape[2]
            mix = torch.randn(tokens, tokens, generator=generator, dtype=x.dtype) / tokens**0.5
            e = torch.zeros_like(plain)
            e[:, :, SINKS:] = 1e-2 * mix @ centred  # of the covariance of the tokens, independent from token to token
            predicted += float((0.5 * weights[layer] * e.square().sum((0, 2, 3)) / tokens).sum())
            changed = [list(states) for states in exact]
            if side == "keys":
                frame.redo(plain + e, 0, out=(turned := torch.empty_like(x)))
                changed[0][layer] = turned
            else:
                changed[1][layer] = x + e
            found += divergence(net, [exact, changed], ids[:, -LAST:])
        assert predicted == pytest.approx(found, rel=0.35)


def test_sinks_and_the_random_state_are_left_alone(net):
    ids = prompt(200)
    exact = read(net, ids[:, :-LAST])
    state = torch.random.get_rng_state()
    frame, inputs = UnrotatedKeys(net.config), {"input_ids": ids[:, -LAST:]}
    one = measure_sensitivities(net, inputs, *exact, frame, sinks=SINKS)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = measure_sensitivities(net, inputs, *exact, frame, sinks=SINKS)
    assert torch.equal(one.keys[0].weight, again.keys[0].weight)
    assert one.source == "the last 64 tokens of the prompt"
    none = measure_sensitivities(net, inputs, *exact, frame, sinks=exact[0][0].shape[2])
    assert float(none.values[1].weight.sum()) == 0
    assert all((site.coherence >= 1).all() for site in (*one.keys, *one.values))


def test_a_prompt_is_asked_once_and_generation_goes_on(net):
    ids = prompt(200)
    with spectral_cache(net, bits=4.0, **SMALL) as run, torch.inference_mode():
        out = net.generate(ids, max_new_tokens=40, do_sample=False)
        assert run.report().sensitivities == "the last 100 tokens of the prompt"
        first = run.cache.fits.layers[0].keys
        assert run.cache.layers[0].blocks == 7
        assert run.cache.fits.layers[0].keys is first
    with spectral_cache(net, bits=4.0, **SMALL) as run:  # the first block is whole after some steps
        net.generate(ids[:, :30], max_new_tokens=40, do_sample=False)
        assert run.report().sensitivities.startswith("the last ")
    assert out.shape == (1, 240)


def test_padded_prompts_are_asked_where_their_tokens_are(net):
    """The left-padded sequence has the sensitivities of the one without padding."""
    ids = prompt(200)
    padded = torch.nn.functional.pad(ids, (30, 0))
    mask = (padded > 0).long()
    found = []
    for tokens, given in ((ids, torch.ones_like(ids)), (padded, mask)):
        with spectral_cache(net, bits=4.0, **SMALL) as run:
            net.generate(tokens, attention_mask=given, max_new_tokens=2, do_sample=False)
            found.append(run.cache.sensitivities)
    assert found[0].source == "the last 100 tokens of the prompt"
    for side in ("keys", "values"):
        for one, other in zip(getattr(found[0], side), getattr(found[1], side), strict=True):
            assert torch.allclose(one.weight.log(), other.weight.log(), atol=0.5)  # of 100 and of 115 predictions


def test_without_the_context_manager_there_are_two_factors(net):
    cache = SpectralCache(net.config, bits=4.0, **SMALL)
    with torch.no_grad():
        net(prompt(), past_key_values=cache)
    assert cache.report().sensitivities == "one factor for keys and one for values"
    assert cache.fits is not None
    cache.reset()
    assert cache.fits is None
    assert cache.sensitivities is None


def test_nan_in_one_head_is_named(net):
    states = read(net, prompt(200))
    states[0][1][0, 1, 50] = torch.nan
    cache = SpectralCache(net.config, bits=4.0, **SMALL)
    cache.update(states[0][0], states[1][0], 0)
    with pytest.raises(ValueError, match="keys of layer 1: X must be finite, got NaN"):
        cache.update(states[0][1], states[1][1], 1)


def test_prompt_lookup_asks_about_what_stays(net):
    ids = prompt(40).repeat(1, 6)
    with spectral_cache(net, bits=4.0, **SMALL) as run:
        net.generate(ids, max_new_tokens=40, do_sample=False, prompt_lookup_num_tokens=6)
        assert run.report().sensitivities.startswith("the last ")
        assert run.cache.layers[0].blocks > 5
