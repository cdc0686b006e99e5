import pytest
import torch

import eigenscope.kv

transformers = pytest.importorskip("transformers")
from kv_language_model import Protocol, compared, cut, lacking, load, logits_after, prefill, recalled  # noqa: E402
from kv_language_rows import rows, spectral, transform, unavailable  # noqa: E402
from kv_language_texts import FACT_TOPICS, TEXTS, planted, tokens, topic  # noqa: E402
from rotated_lloyd_max import RotatedLloydMax  # noqa: E402

pytestmark = pytest.mark.xdist_group("language_model")  # which is loaded once

SMALL = Protocol(coded=512, predictions=64)


@pytest.fixture(scope="module")
def real():
    """Three layers of the real model, and its tokenizer."""
    if lacking():
        pytest.skip(f"needs {' and '.join(lacking())}: `make llm` installs what is missing")
    return load(layers=3)


@pytest.fixture(scope="module")
def prefix(real):
    model, tokenizer = real
    ids = tokens(tokenizer, "compound", topic("compound"), SMALL.prefix + SMALL.predictions + 1)
    return prefill(model, ids[:, : SMALL.prefix], SMALL), ids[0, SMALL.prefix :]


def figures(prefix, states):
    read, following = prefix
    exact = logits_after(read, read.states, following[:-1])
    return compared(exact, logits_after(read, states, following[:-1]), following[1:])


def test_exact_codes_have_no_divergence_and_sixteen_bits(prefix):
    states, bits = rows(None)["exact"](prefix[0])
    assert bits == pytest.approx(16, abs=0.01)  # and the frequencies of the rotation
    kl, top1, nll = figures(prefix, states)
    assert abs(kl) < 1e-5  # keys before rotation are rounded to float16 once more
    assert top1 == 1
    read, following = prefix
    with torch.no_grad():
        logits = read.model(torch.cat([read.ids[0], following])[None]).logits[0, SMALL.prefix : -1]
    expected = torch.nn.functional.cross_entropy(logits, following[1:])
    assert nll == pytest.approx(float(expected), abs=1e-3)  # the same text read in one go


def test_codecs_stand_in_the_order_of_what_they_keep(prefix):
    kl = {name: figures(prefix, spectral(codec)(prefix[0]).states).kl for name, codec in CODECS.items()}
    assert 1e-7 < kl["transform 4"] < kl["integers 4"] < kl["integers 2"]
    assert kl["transform 4"] < kl["transform 2"]
    assert kl["rotation 4"] < kl["rotation 2"]


CODECS = {f"integers {bits}": eigenscope.kv.UniformInt(bits) for bits in (4, 2)}
CODECS |= {f"transform {bits}": transform(bits, bits) for bits in (4, 2)}
CODECS |= {f"rotation {bits}": RotatedLloydMax(bits) for bits in (4, 2)}


def test_one_call_equals_token_by_token_in_the_compressed_cache_itself(prefix):
    read, following = prefix
    together = logits_after(read, spectral(transform(3, 3))(read).states, following[:8])
    cache = eigenscope.kv.SpectralCache(read.model.config, transform(3, 3), block=512)
    for layer, (keys, values) in enumerate(read.states):
        cache.update(keys.float(), values.float(), layer)
    with torch.no_grad():
        alone = [read.model(token[None, None], past_key_values=cache).logits[0, -1] for token in following[:8]]
    # The states went through float16 in one of them, whose rounding may move a code by a level here and there.
    assert float((together - torch.stack(alone)).abs().max()) < 0.05 * float(together.std())


def test_questions_in_one_call_are_answered_as_alone(real):
    model, tokenizer = real
    context = planted(tokenizer, "types", SMALL.prefix, SMALL.sinks + SMALL.coded, seed=0)
    read = prefill(model, context.prefix, SMALL)
    text = tokenizer.decode(context.prefix[0, : -SMALL.window])
    for question in context.questions:  # every answer stands in the coded part
        assert tokenizer.decode(question).rpartition("\n")[2] + "." in text
    # Three layers know no answers: ask for what they say, and for something else.
    said = [logits_after(read, read.states, question[:-1]).argmax(-1) for question in context.questions]
    own = [torch.cat([question[:-1], answer[-1:]]) for question, answer in zip(context.questions, said, strict=True)]
    assert recalled(read, read.states, own, digits=1) == [True] * len(own)
    other = [torch.cat([question[:-1], (question[-1:] + 1) % 49152]) for question in own]
    assert recalled(read, read.states, other, digits=1) == [False] * len(own)


def test_a_model_that_says_nan_is_no_result(prefix):
    read, following = prefix
    states = [(keys, values * torch.nan) for keys, values in read.states]
    with pytest.raises(ValueError, match="logits with the compressed cache must be finite"):
        figures(prefix, states)
    with pytest.raises(ValueError, match="logits with the exact cache must be finite"):
        compared(torch.full((2, 5), torch.nan), torch.zeros(2, 5), following[:2])


def test_divergence_agreement_and_likelihood_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    exact, logits = torch.randn(2, 7, 11, generator=generator)
    targets = torch.randint(11, (7,), generator=generator)
    kl, top1, nll = compared(exact, logits, targets)
    reference = torch.nn.functional.kl_div(
        logits.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert kl == pytest.approx(float(reference), rel=1e-5)
    assert nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-5)
    assert top1 == pytest.approx(sum(a.argmax() == b.argmax() for a, b in zip(exact, logits, strict=True)) / 7)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_of_a_random_rotation_is_that_of_the_quantiser_whatever_the_direction(bits):
    X = torch.zeros(2, 3, 512, 64)
    X[..., 5] = torch.logspace(-2, 2, 512)  # one channel, tokens of very different sizes
    codec = RotatedLloydMax(bits)
    code = codec.encode(X, codec.fit(X))
    X_hat = codec.decode(code, codec.fit(X))
    error = (X - X_hat).square().sum(-1) / X.square().sum(-1)
    distortion = eigenscope.kv.codecs.bit_planes.lloyd_max(bits).distortion
    assert (error < 3 * distortion).all()
    assert (error > distortion / 3).all()
    assert eigenscope.kv.bits_per_element(X.numel(), code) == bits + 8 / 64 + 64 / (512 * 64)


def test_texts_for_choosing_and_for_reporting_are_apart():
    choosing, reporting = (
        {read() for read in TEXTS[purpose].values()} | {topic(name) for name in FACT_TOPICS[purpose]}
        for purpose in ("choosing", "reporting")
    )
    assert not choosing & reporting
    for purpose, least in (("choosing", 2), ("reporting", 4)):
        assert len(TEXTS[purpose]) >= least
        assert all(len(read()) > 9000 for read in TEXTS[purpose].values())


def test_rows_that_cannot_be_measured_are_rows():
    assert all(any(name.startswith(start) for name in rows(None)) for start in unavailable())


def test_a_model_has_no_more_layers_than_it_has(real):
    with pytest.raises(ValueError, match="layers must be from 1 to 3, got 4"):
        cut(real[0], 4)
