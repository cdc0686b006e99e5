import pytest
import torch

from eigenscope.data import RecallDataset, RecallTask, ShorterContext, draw_recall
from eigenscope.data.epoch_sampler import EpochIndex
from eigenscope.noise import stream_key

TASK = RecallTask(context=40, pairs=8, queries=6, keys=12, values=9, fillers=5)
SHORTER = (ShorterContext(epochs=2, context=4, pairs=2), ShorterContext(epochs=1, context=20, pairs=7))


def drawn(task=TASK, key=3, count=200):
    return draw_recall(task, key, torch.arange(count))


def test_every_answer_is_the_value_of_its_key():
    tokens, labels = drawn()
    assert tokens.shape == labels.shape == (200, 46)
    assert tokens.dtype == labels.dtype == torch.int64
    assert (labels[:, :40] == -100).all()
    for row, answers in zip(tokens.tolist(), labels[:, 40:].tolist(), strict=True):
        context, asked = row[:40], row[40:]
        values = {token: context[place + 1] for place, token in enumerate(context) if token < 12}
        assert [values[key] for key in asked] == answers
        assert len(set(asked)) == 6


def test_a_context_is_pairs_among_fillers():
    context = drawn()[0][:, :40]
    is_key, is_value, is_filler = context < 12, (context >= 12) & (context < 21), context >= 21
    assert (is_key.sum(1) == 8).all()
    assert torch.equal(is_key[:, :-1], is_value[:, 1:])  # a value stands behind every key, and nowhere else
    assert not is_value[:, 0].any()
    assert (is_filler.sum(1) == 24).all()
    assert context.max() == TASK.vocabulary - 1 == 25
    keys = context[is_key].view(200, 8).sort(1).values
    assert (keys[:, 1:] > keys[:, :-1]).all()


def test_places_keys_values_and_questions_are_uniform():
    tokens, _ = drawn(count=4000)
    context, asked = tokens[:, :40], tokens[:, 40:]
    is_key = context < 12
    # the i-th of 8 pairs among 32 units stands, on average, at unit (i + 1) 33 / 9 − 1, moved by the i pairs before
    places = is_key.nonzero()[:, 1].view(4000, 8).double()
    wanted = torch.arange(1, 9) * 33 / 9 - 1 + torch.arange(8)
    assert (places.mean(0) - wanted).abs().max() < 0.35  # 4.5 deviations of the means, at most 4.9 / √4000
    for found, kinds, first in ((context[is_key], 12, 0), (context[context >= 21], 5, 21), (asked, 12, 0)):
        counts = (found - first).flatten().bincount(minlength=kinds)
        expected = found.numel() / kinds
        assert (counts - expected).abs().max() < 5 * expected**0.5
    values = (context[(context >= 12) & (context < 21)] - 12).bincount(minlength=9)
    assert (values - 32000 / 9).abs().max() < 5 * (32000 / 9) ** 0.5
    order = (asked[:, :, None] == context[:, None, :]).nonzero()[:, 2].view(4000, 6).argsort(1)[:, 0].bincount()
    assert (order - 4000 / 6).abs().max() < 5 * (4000 / 6) ** 0.5  # questions do not follow the context's order


def test_a_sequence_is_a_function_of_key_and_sample():
    tokens, labels = drawn(count=50)
    picked = torch.tensor([49, 3, 3, 17])
    some = draw_recall(TASK, 3, picked)
    assert torch.equal(some[0], tokens[picked])
    assert torch.equal(some[1], labels[picked])
    assert len(tokens.unique(dim=0)) == 50
    assert not torch.equal(drawn(key=4, count=50)[0], tokens)


def test_the_data_set_follows_seed_and_epoch():
    data = RecallDataset(30, TASK, seed=7, fixed=False)
    assert len(data) == 30
    batch = data.__getitems__([EpochIndex(5, 2), EpochIndex(5, 11)])
    expected = draw_recall(TASK, stream_key(7, 5), torch.tensor([2, 11]))
    assert all(torch.equal(got, wanted) for got, wanted in zip(batch, expected, strict=True))
    tokens, labels = data[EpochIndex(5, 11)]
    assert torch.equal(tokens, batch[0][1])
    assert torch.equal(labels, batch[1][1])
    assert not torch.equal(data[EpochIndex(6, 11)][0], tokens)
    assert not torch.equal(RecallDataset(30, TASK, seed=8, fixed=False)[EpochIndex(5, 11)][0], tokens)


def test_a_fixed_set_does_not_follow_the_epoch():
    data = RecallDataset(30, TASK, seed=7, fixed=True)
    assert torch.equal(data[EpochIndex(6, 11)][0], data[11][0])
    with pytest.raises(ValueError, match="fixed"):
        RecallDataset(30, TASK, SHORTER, seed=7, fixed=True)


def test_shorter_contexts_come_first():
    data = RecallDataset(30, TASK, SHORTER, seed=7, fixed=False)
    lengths = [len(data[EpochIndex(epoch, 0)][0]) for epoch in range(5)]
    assert lengths == [4 + 2, 4 + 2, 20 + 6, 40 + 6, 40 + 6]
    assert data.task_at(0).vocabulary == TASK.vocabulary


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"fillers": 0}, "fillers must be at least 1, got 0"),
        ({"context": 15}, "context must hold pairs 8 of two tokens each, got 15"),
        ({"queries": 9}, "queries must be at most pairs 8, got 9"),
        ({"keys": 7}, "keys must be at least pairs 8, got 7"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        RecallTask(**{"context": 40, "pairs": 8, "queries": 6, "keys": 12, "values": 9, "fillers": 5} | wrong)


def test_wrong_shorter_contexts_are_named():
    with pytest.raises(ValueError, match="epochs of a shorter context must be at least 1, got 0"):
        ShorterContext(epochs=0, context=4, pairs=2)
    with pytest.raises(ValueError, match="keys must be at least pairs 13, got 12"):
        RecallDataset(30, TASK, [ShorterContext(1, 40, 13)], seed=0, fixed=False)


def test_the_tightest_task():
    tokens, labels = drawn(RecallTask(context=6, pairs=3, queries=3, keys=3, values=1, fillers=1), count=20)
    assert (tokens[:, 1:6:2] == 3).all()
    assert (labels[:, 6:] == 3).all()
    assert torch.equal(tokens[:, 6:].sort(1).values, torch.arange(3).expand(20, -1))
