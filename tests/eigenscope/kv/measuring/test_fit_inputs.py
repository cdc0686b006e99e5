import math

import pytest
import torch
from compressed_recall import as_llama, compressed_recall
from torch import nn

from eigenscope.data import RecallTask, draw_recall
from eigenscope.kv import Exact, KVCodec, ScoreAwareCodec
from eigenscope.kv.measuring.attention_context import AttentionContext
from eigenscope.kv.measuring.attention_layers import attention_layers
from eigenscope.kv.measuring.capture import Captured, capture
from eigenscope.kv.measuring.evaluation import KVEvaluation
from eigenscope.kv.measuring.fit_inputs import met_queries, received_attention
from eigenscope.nn import CausalTransformer
from eigenscope.nn.transformers.causal_transformer import rotate

T, WIDTH, HEADS, KEY_HEADS, D = 48, 32, 4, 2, 8


def own(seed=0):
    """Its queries and keys have means and few directions, as those of trained networks have."""
    torch.manual_seed(seed)
    net = CausalTransformer(11, width=WIDTH, depth=2, num_heads=HEADS, num_key_heads=KEY_HEADS, mlp_width=16)
    for block in net.blocks:
        for linear in (block.attention.to_queries, block.attention.to_keys):
            nn.init.normal_(linear.bias)
            linear.weight.data *= torch.tensor([2.0, 2, 0.2, 0.2, 1, 1, 0.2, 0.2]).repeat(len(linear.weight) // D)[
                :, None
            ]
    return net.eval()


def text(seed, batch=4):
    return torch.randint(11, (batch, T), generator=torch.Generator().manual_seed(seed))


def seen_by(net, tokens, **options):
    return capture(attention_layers(net), lambda: net(tokens, **options))[1]


NETWORKS = {"own": own, "llama": lambda: as_llama(own())}


def moment(Q):
    """(heads of keys, d, d) sums of q qᵀ over samples and the query heads of a key head."""
    Q = Q.double().unflatten(1, (KEY_HEADS, -1))
    return (Q.mT @ Q).sum((0, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_met_queries_have_the_moment_of_all_pairs(name):
    """Against a loop over pairs: a query at m meets a key at n turned by m − n, of those it looks at."""
    seen = next(iter(seen_by(NETWORKS[name](), text(0)).values()))
    exact = torch.zeros(KEY_HEADS, D, D, dtype=torch.float64)
    for m in range(T):
        distances = torch.arange(m + 1)
        turned = rotate(seen.queries[..., m : m + 1, :].expand(-1, -1, m + 1, -1).double(), distances, 10_000.0)
        exact += moment(turned)
    exact /= T * (T + 1) / 2
    met = moment(met_queries(seen, rounds=T)) / (T * T)
    assert (met - exact).norm() < 0.01 * exact.norm()
    few = moment(met_queries(seen)) / (4 * T)
    assert (few - exact).norm() < 0.1 * exact.norm()
    unrotated = moment(seen.queries) / T
    assert (unrotated - exact).norm() > 0.3 * exact.norm()


def test_both_networks_meet_the_same_queries():
    net = own()
    mine, theirs = seen_by(net, text(0)), seen_by(as_llama(net), text(0))
    for a, b in zip(mine.values(), theirs.values(), strict=True):
        torch.testing.assert_close(met_queries(a), met_queries(b), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(received_attention(a), received_attention(b), atol=1e-4, rtol=1e-4)


class Spy(Exact):
    """Keeps what it is fitted with."""

    def fit(self, X, **options):
        self.kept.append(options)
        return super().fit(X, groups=options["groups"])


def test_evaluation_and_recall_study_fit_with_them():
    net = own()
    captured = seen_by(net, text(0))
    keys, values = Spy(), Spy()
    for spy in (keys, values):
        object.__setattr__(spy, "kept", [])
    KVEvaluation({"spy": KVCodec(keys, values)}, list(captured)).fit(captured)
    for place, seen in enumerate(captured.values()):
        assert keys.kept[0]["queries"][:, place].equal(met_queries(seen))
        assert values.kept[0]["weights"][:, place].equal(received_attention(seen))
    task = RecallTask(context=80, pairs=10, queries=8, keys=16, values=16, fillers=4)
    torch.manual_seed(0)
    net = CausalTransformer(task.vocabulary, width=WIDTH, num_heads=HEADS, num_key_heads=KEY_HEADS, mlp_width=16).eval()
    tokens, labels = draw_recall(task, 0, torch.arange(3))
    compressed_recall(net, tokens, labels, KVCodec(keys, values), calibration=tokens, dtype=None)
    for place, seen in enumerate(seen_by(net, tokens).values()):
        expected = met_queries(seen, queries=slice(80, None), keys=slice(4, 48))
        assert keys.kept[1]["queries"][:, place].equal(expected)
        weights = received_attention(seen, queries=slice(80, None))[..., 4:48]
        assert values.kept[1]["weights"][:, place].equal(weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_kept_better_than_with_queries_that_are_not_turned(name):
    net = NETWORKS[name]()
    fit, other = seen_by(net, text(0, batch=16)), seen_by(net, text(1, batch=16))
    codec = ScoreAwareCodec(bits_per_element=3.0, tokens=4096)
    for layer, seen in fit.items():
        errors = []
        for queries in (met_queries(seen), seen.queries):
            state = codec.fit(seen.keys, queries=queries)
            held = other[layer]
            decoded = codec.decode(codec.encode(held.keys, state), state)
            turn = held.context.turn
            Q = turn(held.queries).unflatten(1, (KEY_HEADS, -1))
            wrong, exact = (Q @ turn(K)[:, :, None].mT for K in (decoded - held.keys, held.keys))
            errors.append(float(wrong.tril().norm() / exact.tril().norm()))
        assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("padded", [False, True])
def test_only_queries_that_look_at_a_key_meet_it(padded):
    """A query of ones alone in its place is met turned back from there, by keys that it looks at."""
    Q, K = torch.zeros(2, 1, 6, 4), torch.zeros(2, 1, 6, 4)
    Q[..., 3, :] = 1
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6).clone()
    mask[1, :, :, :2] = not padded
    places = torch.arange(6)
    context = AttentionContext(
        mask=mask, turn=lambda x: rotate(x, places, 100.0), turn_back=lambda x: rotate(x, -places, 100.0)
    )
    met = met_queries(Captured(Q, K, K, context, True), rounds=60).unflatten(-2, (60, 6))[:, 0]
    lengths = met.norm(dim=-1).sum(1) > 0
    assert lengths.tolist() == [[True] * 4 + [False] * 2, [not padded] * 2 + [True] * 2 + [False] * 2]
    for key in range(4):
        expected = rotate(torch.ones(1, 4), torch.tensor([3 - key]), 100.0)[0]
        found = met[0, :, key][met[0, :, key].norm(dim=-1) > 0]
        torch.testing.assert_close(found / found.norm(dim=-1, keepdim=True) * 2, expected.expand_as(found))
        assert len(found) == pytest.approx(60 / (6 - key), abs=1)  # of the queries from the key on


def test_without_rotation_they_are_the_queries():
    Q = torch.randn(2, 4, 5, 6)
    plain = Captured(Q, Q, Q, AttentionContext(causal=True), True)
    assert met_queries(plain) is plain.queries or met_queries(plain).equal(Q)
    unknown = AttentionContext(turn=lambda x: x.flip(-1), turn_back=lambda x: x.flip(-1))
    assert met_queries(Captured(Q, Q, Q, unknown, False)).equal(Q)
    scores = (Q @ Q.mT / math.sqrt(6)).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(received_attention(plain), scores.softmax(-1).sum(-2))
