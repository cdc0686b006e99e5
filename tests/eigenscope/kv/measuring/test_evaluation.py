import math

import pytest
import torch
from scipy import stats

from eigenscope.kv import (
    Codec,
    Exact,
    KVCodec,
    LowRankInt8,
    ScoreAwareCodec,
    TransformCodec,
    UniformInt,
    nbytes,
    rate_distortion_bound,
    relative_error,
)
from eigenscope.kv.measuring.attention_context import AttentionContext
from eigenscope.kv.measuring.capture import Captured
from eigenscope.kv.measuring.evaluation import KVEvaluation, baseline_codecs, default_codecs
from eigenscope.kv.measuring.metric_sums import BOUND_BITS, KVMetricSums, logit_change, paired_change

LAYERS = ["a", "b", "wide"]


def network(seed, batch=6, tokens=16, dtype=torch.float32, **context):
    """Three layers, two of one shape and a third with grouped queries, whose spectra and means are not flat."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads, d):
        spectrum = 0.7 ** torch.arange(d)
        return (torch.randn(batch, heads, tokens, d, generator=generator) * spectrum + 0.3).to(dtype)

    shapes = {"a": (2, 2, 8), "b": (2, 2, 8), "wide": (4, 2, 12)}
    return {
        name: Captured(draw(queries, d), draw(heads, d), draw(heads, d), AttentionContext(**context), True)
        for name, (queries, heads, d) in shapes.items()
    }


def trial(codecs, calibration, *measured):
    made = KVEvaluation(codecs, LAYERS)
    made.fit(calibration)
    for captured in measured:
        list(made.measure(captured))
    return made


def alone(codec, calibration, X, **options):
    """Decoded X and bytes stored, without the trial."""
    fitted = codec.fit(calibration, groups=1, **options)
    code = codec.encode(X, fitted)
    return codec.decode(code, fitted), nbytes(code, fitted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measures_of_a_layer_are_those_of_its_codecs(dtype):
    pair = KVCodec(UniformInt(3, axis="channel"), LowRankInt8(2))
    fit, seen = network(0, dtype=dtype), network(1, batch=4, dtype=dtype)
    sums = trial({"pair": pair}, fit, seen).sums
    found = {name: values[0].tolist() for name, values in sums.by_layer().items()}
    for number, layer in enumerate(LAYERS):
        held = {}
        for role, codec in (("keys", pair.keys), ("values", pair.values)):
            X = getattr(seen[layer], role)
            decoded, held[role] = alone(codec, getattr(fit[layer], role), X)
            assert found[f"bits_{role}"][number] == pytest.approx(8 * held[role] / X.numel())
            assert found[f"error_{role}"][number] == pytest.approx(float(relative_error(X, decoded, None)), rel=1e-5)
        elements = 2 * seen[layer].keys.numel()
        assert found["ratio"][number] == pytest.approx(2 * elements / sum(held.values()))
        assert found["bits_per_element"][number] == pytest.approx(8 * sum(held.values()) / elements)


def test_attention_is_that_of_the_first_samples():
    fit, seen = network(0), network(1)
    codec = KVCodec.of(UniformInt(2))
    sums = trial({"coarse": codec}, fit, seen).sums
    layer = seen["wide"]
    K, V = (alone(UniformInt(2), x, x)[0][:4].double().repeat_interleave(2, 1) for x in (layer.keys, layer.values))
    Q, K0, V0 = (
        layer.queries[:4].double(),
        *(x[:4].double().repeat_interleave(2, 1) for x in (layer.keys, layer.values)),
    )
    scores, scores_hat = Q @ K0.mT / math.sqrt(12), Q @ K.mT / math.sqrt(12)
    A, A_hat = scores.softmax(-1), scores_hat.softmax(-1)
    found = {name: float(values[0, 2]) for name, values in sums.by_layer().items()}
    assert found["score_rmse"] == pytest.approx(float((scores - scores_hat).square().mean().sqrt()), rel=1e-4)
    assert found["attention_kl"] == pytest.approx(float((A * (A / A_hat).log()).sum(-1).mean()), rel=1e-3)
    cosine = torch.cosine_similarity(A @ V0, A_hat @ V, dim=-1).mean()
    assert found["output_cosine"] == pytest.approx(float(cosine), rel=1e-5)


def test_attention_looks_where_the_layer_does():
    seen = network(1)
    codecs = {"coarse": KVCodec.of(UniformInt(2))}
    plain, causal = (trial(codecs, network(0), network(1, **o)).sums.by_layer() for o in ({}, {"causal": True}))
    assert not torch.allclose(plain["attention_kl"], causal["attention_kl"], rtol=0.01)
    mask = torch.ones(16, 16, dtype=torch.bool).tril().expand(6, 1, 16, 16)
    masked = trial(codecs, network(0), network(1, mask=mask)).sums.by_layer()
    torch.testing.assert_close(masked["attention_kl"], causal["attention_kl"])
    doubled = trial(codecs, network(0), network(1, turn=lambda x: 2 * x)).sums.by_layer()
    torch.testing.assert_close(doubled["score_rmse"], 4 * plain["score_rmse"])
    unknown = {name: layer._replace(explained=False) for name, layer in seen.items()}
    without = trial(codecs, network(0), unknown).sums
    assert without.by_layer()["score_rmse"].isnan().all()
    assert without.by_layer()["error_keys"].equal(plain["error_keys"])


def test_exact_loses_nothing():
    sums = trial(baseline_codecs(), network(0), network(1)).sums.overall()
    assert (sums["ratio"][0], sums["bits_keys"][0]) == (0.5, 32)
    assert (sums["error_keys"][0], sums["score_rmse"][0], sums["attention_kl"][0]) == (0, 0, 0)
    assert sums["output_cosine"][0] == pytest.approx(1)
    assert sums["error_keys"].diff().min() > 0  # exact, int8, int4
    assert sums["bits_keys"].diff().max() < 0


def test_codecs_are_fitted_on_the_other_samples():
    class Remembers(Exact):
        def fit(self, X, **options):
            fits.append((X, options))
            return super().fit(X, groups=options["groups"])

    fits = []
    fit = network(0, causal=True)
    trial({"spy": KVCodec.of(Remembers())}, fit, network(1))
    assert len(fits) == 4  # keys and values of two shapes
    (K, keys), (V, values) = fits[:2]
    for number, layer in enumerate("ab"):
        assert K[:, number].equal(fit[layer].keys)
        assert V[:, number].equal(fit[layer].values)
        assert keys["queries"][:, number].equal(fit[layer].queries)
    assert (keys["groups"], values["groups"]) == (2, 2)
    queries, K = fit["wide"].queries, fit["wide"].keys.repeat_interleave(2, 1)
    scores = queries @ K.mT / math.sqrt(12) + torch.full((16, 16), -torch.inf).triu(1)
    received = scores.softmax(-1).sum(-2).unflatten(1, (2, 2)).sum(2)
    torch.testing.assert_close(fits[3][1]["weights"][:, 0], received)


def test_weights_are_those_of_each_samples_own_mask():
    class Remembers(Exact):
        def fit(self, X, **options):
            fits.append(options.get("weights"))
            return super().fit(X, groups=options["groups"])

    fits = []
    fit = network(0)
    allowed = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = torch.zeros(6, 1, 16, 16).masked_fill(~(allowed | torch.eye(16, dtype=torch.bool)), -torch.inf)
    fit = {name: layer._replace(context=AttentionContext(mask=mask)) for name, layer in fit.items()}
    KVEvaluation({"spy": KVCodec.of(Remembers())}, LAYERS).fit(fit)
    expected = ((fit["b"].queries @ fit["b"].keys.mT) / math.sqrt(8) + mask).softmax(-1).sum(-2)
    torch.testing.assert_close(fits[1][:, 1], expected)


def test_sums_add_up_over_batches_and_layers():
    codecs = {"int4": KVCodec.of(UniformInt(4)), "svd": KVCodec.of(LowRankInt8(3))}
    fit, first, second = network(0), network(1), network(2, batch=2)
    both = trial(codecs, fit, first, second).sums
    one, other = trial(codecs, fit, first).sums, trial(codecs, fit, second).sums
    for name in ("tokens", "attention", "bound"):
        torch.testing.assert_close(getattr(both, name), getattr(one, name) + getattr(other, name))
    mapped = trial(codecs, fit, first).sums.map(lambda x: x + x)
    torch.testing.assert_close(mapped.overall(), one.overall(), equal_nan=True)
    errors = [
        torch.cat([(seen[layer].keys - alone(UniformInt(4), fit[layer].keys, seen[layer].keys)[0]).flatten()])
        for seen in (first, second)
        for layer in LAYERS
    ]
    wrong = sum(float(e.double().square().sum()) for e in errors)
    energy = sum(float(seen[layer].keys.double().square().sum()) for seen in (first, second) for layer in LAYERS)
    assert float(both.overall()["error_keys"][0]) == pytest.approx(math.sqrt(wrong / energy), rel=1e-5)


def test_the_bound_is_that_of_the_measured_covariance():
    seen = network(1)
    sums = trial({"int4": KVCodec.of(UniformInt(4, axis="channel"))}, network(0), seen).sums
    bits, bound = (sums.by_layer()[name][0, 2] for name in ("bits_values", "bound_values"))
    V = seen["wide"].values.double().transpose(0, 1).flatten(1, 2)
    spectrum = torch.stack([torch.cov(head.T, correction=0) for head in V])
    spectrum = torch.linalg.eigvalsh(spectrum).flatten() * V.shape[1]
    expected = (rate_distortion_bound(spectrum, float(bits)) / V.square().sum()).sqrt()
    assert float(bound) == pytest.approx(float(expected), rel=2e-3)
    assert float(bound) < float(sums.by_layer()["error_values"][0, 2])
    curve = sums.bound_curves()[2, 1]
    exact = (rate_distortion_bound(spectrum[None], BOUND_BITS) / V.square().sum()).sqrt()
    torch.testing.assert_close(curve, exact, rtol=1e-5, atol=0)
    beyond = trial({"exact": KVCodec.of(Exact())}, network(0), seen).sums.by_layer()["bound_values"][0, 2]
    assert float(beyond) == pytest.approx(
        float(rate_distortion_bound(spectrum, 32.0) / V.square().sum()) ** 0.5, rel=1e-3
    )


def test_what_is_decoded_has_the_layers_own_shape():
    seen = network(1)
    made = KVEvaluation({"exact": KVCodec.of(Exact()), "int8": KVCodec.of(UniformInt(8))}, LAYERS)
    made.fit(network(0))
    found = dict(made.measure(seen))
    assert sorted(found) == [0, 1]
    for layer in LAYERS:
        assert found[0][layer][0].equal(seen[layer].keys)
        assert found[0][layer][1].equal(seen[layer].values)
        assert not found[1][layer][0].equal(seen[layer].keys)
        torch.testing.assert_close(found[1][layer][0], seen[layer].keys, rtol=0, atol=0.05)


def test_a_codec_that_refuses_is_named_and_the_others_go_on():
    codecs = {"svd": KVCodec.of(LowRankInt8(9)), "tiny": KVCodec.of(TransformCodec(bits_per_element=1e-3))}
    made = trial(codecs | {"int4": KVCodec.of(UniformInt(4))}, network(0), network(1))
    assert sorted(made.failed) == ["svd", "tiny"]
    assert "rank must be at most" in str(made.failed["svd"].error)
    assert made.failed["svd"].layers == ("a", "b")
    assert "bits_per_element must be at least" in str(made.failed["tiny"].error)
    overall = made.sums.overall()["error_keys"]
    assert overall[1].isnan()
    assert overall[2] > 0


def test_a_layer_that_is_missing_is_left_out_with_those_it_was_fitted_with():
    seen = network(1)
    del seen["a"]
    found = trial({"int4": KVCodec.of(UniformInt(4))}, network(0), seen).sums
    assert found.by_layer()["error_keys"][0].isnan().tolist() == [True, True, False]
    assert float(found.overall()["error_keys"][0]) == float(found.by_layer()["error_keys"][0, 2])
    assert float(found.overall()["bound_keys"][0]) == float(found.by_layer()["bound_keys"][0, 2])


def test_a_codec_that_refuses_some_layers_is_beside_the_bound_of_the_others():
    fit, seen = ({name: captured[name] for name in ("wide", "a", "b")} for captured in (network(0), network(1)))
    made = trial({"svd": KVCodec.of(LowRankInt8(10))}, fit, seen)  # heads of a and b are 8 wide
    assert list(made.failed) == ["svd"]
    by_layer, overall = made.sums.by_layer(), made.sums.overall()
    for name in ("error_keys", "bound_keys", "ratio", "attention_kl"):
        assert by_layer[name][0].isnan().tolist() == [True, True, False]
        assert float(overall[name][0]) == float(by_layer[name][0, 2])


def test_the_default_codecs_scale_with_the_head():
    codecs = default_codecs(128, 512)
    assert codecs["low_rank"] == KVCodec(LowRankInt8(16), LowRankInt8(32))
    assert default_codecs(4, 9)["low_rank"] == KVCodec(LowRankInt8(1), LowRankInt8(1))
    assert default_codecs(128, 20)["low_rank"] == KVCodec(LowRankInt8(16), LowRankInt8(20))
    assert isinstance(codecs["score_aware"].keys, ScoreAwareCodec)
    assert not set(codecs) & set(baseline_codecs())
    sums = trial(default_codecs(8, 16), network(0, batch=32), network(1, batch=32)).sums
    assert sums.overall()["error_keys"].isfinite().all()
    assert all(isinstance(codec.values, Codec) for codec in codecs.values())


def test_zeros_have_no_error():
    seen = {name: layer._replace(keys=torch.zeros_like(layer.keys)) for name, layer in network(1).items()}
    found = trial({"int4": KVCodec.of(UniformInt(4))}, seen, seen).sums.by_layer()
    assert found["error_keys"].tolist() == found["bound_keys"].tolist() == [[0, 0, 0]]


def test_what_was_not_measured_is_nan():
    assert all(values.isnan().all() for values in trial(baseline_codecs(), network(0)).sums.overall().values())


def test_logits():
    exact = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    decoded = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 5.0]])
    labels = torch.tensor([0, 1, 0, -100])  # lost, kept, gained; the last has no label
    agreeing, accuracy, divergence, count = logit_change(exact, decoded, labels).tolist()
    assert (agreeing, accuracy, count) == (1, 0, 3)
    p, q = exact[:3].double().softmax(-1), decoded[:3].double().softmax(-1)
    assert divergence == pytest.approx(float((p * (p / q).log()).sum()))
    assert logit_change(exact, decoded, torch.tensor([0, 1, 1, 0])).tolist()[1] == -3
    sums = KVMetricSums(["x"], ["y"])
    sums.network[0] = logit_change(exact, decoded, labels)
    overall = sums.overall()
    assert (float(overall["top1_agreement"]), float(overall["accuracy_difference"])) == (pytest.approx(1 / 3), 0)
    assert float(overall["logit_kl"]) == pytest.approx(divergence / 3)
    assert logit_change(exact, exact, labels)[2] == 0


def test_logits_of_nan_agree_with_nothing():
    exact = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    broken = torch.tensor([[torch.nan, 0.0], [0.0, 1.0], [torch.nan, torch.nan]])
    labels = torch.tensor([0, 1, 0])
    agreeing, accuracy, divergence, count = logit_change(exact, broken, labels).tolist()
    assert (agreeing, accuracy, count) == (1, -2, 3)
    assert math.isnan(divergence)
    agreeing, accuracy, divergence, _ = logit_change(broken, broken, labels).tolist()
    assert (agreeing, accuracy) == (1, 0)
    assert math.isnan(divergence)
    sums = KVMetricSums(["x", "unmeasured"], ["y"])
    sums.network[0] = logit_change(exact, broken, labels)
    for name, values in sums.overall().items():
        assert sums.present(name, values).tolist() == [
            name in ("top1_agreement", "accuracy_difference", "logit_kl"),
            False,
        ]


def test_classes_that_are_ruled_out_do_not_diverge():
    exact, decoded = torch.tensor([[1.0, 0.0, -torch.inf]]), torch.tensor([[0.0, 0.5, -torch.inf]])
    both = logit_change(exact, decoded, torch.tensor([0]))
    assert both[2] > 0
    torch.testing.assert_close(both, logit_change(exact[:, :2], decoded[:, :2], torch.tensor([0])))


def interval(exact, decoded, labels):
    sums = KVMetricSums(["x"], ["y"])
    sums.network[0] = logit_change(exact, decoded, labels)
    sums.paired[0] = paired_change(exact, decoded, labels)
    found = sums.overall()
    return [float(found[f"accuracy_{end}"]) for end in ("low", "difference", "high")]


def one_hot(classes):
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(classes), 3)


@pytest.mark.parametrize(("gained", "lost", "same"), [(0, 0, 8), (3, 1, 20), (0, 9, 3), (1, 0, 0)])
def test_the_interval_of_single_predictions_is_agresti_and_mins(gained, lost, same):
    exact = one_hot([1] * gained + [0] * (lost + same))
    decoded = one_hot([0] * gained + [1] * lost + [0] * same)
    n = gained + lost + same
    low, difference, high = interval(exact, decoded, torch.zeros(n, dtype=torch.long))
    assert difference == pytest.approx((gained - lost) / n)
    middle = (gained - lost) / (n + 2)
    width = stats.t.ppf(0.975, n + 1) * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    assert (low, high) == (pytest.approx(max(-1, middle - width)), pytest.approx(min(1, middle + width)))


def test_predictions_of_one_sample_are_not_taken_for_independent():
    """Twelve tokens that all change alike say no more than one; of twelve samples they say more."""
    exact, decoded = one_hot([[1] * 12, [0] * 12] * 4), one_hot([[0] * 12, [1] * 12] * 4)
    labels = torch.zeros(8, 12, dtype=torch.long)
    low, difference, high = interval(exact, decoded, labels)
    assert difference == 0
    alone = interval(exact[:, 0], decoded[:, 0], labels[:, 0])
    apart = interval(exact.flatten(0, 1), decoded.flatten(0, 1), labels.flatten())
    assert high - low > 0.8 * (alone[2] - alone[0])
    assert apart[2] - apart[0] < 0.4 * (high - low)
    padded = torch.cat([labels, torch.full_like(labels, -100)])
    assert interval(exact.repeat(2, 1, 1), decoded.repeat(2, 1, 1), padded) == [low, difference, high]


def test_the_interval_covers():
    """In 93 of 100 experiments with 24 samples, or more, the true difference lies within."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.06, 0.02, 0.92])  # gained, lost, same
    covered = 0
    for _ in range(400):
        outcome = torch.multinomial(chances, 24, replacement=True, generator=generator)
        exact, decoded = one_hot((outcome == 0).long().tolist()), one_hot((outcome == 1).long().tolist())
        low, _, high = interval(exact, decoded, torch.zeros(24, dtype=torch.long))
        assert high > low
        covered += low <= 0.04 <= high
    assert covered >= 0.93 * 400
