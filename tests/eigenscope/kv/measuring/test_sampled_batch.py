from types import SimpleNamespace

import pytest
import torch

from eigenscope.kv.measuring.sampled_batch import SampledBatch, spread_batches


def test_samples_are_spread_over_the_batch():
    images, labels = torch.arange(10.0)[:, None], torch.arange(10)
    run = SampledBatch((images, labels, "name"), 4)
    logits = run(lambda x: x.repeat(1, 3))
    assert logits[:, 0].tolist() == [0, 3, 6, 9]
    assert run.labels(logits).tolist() == [0, 3, 6, 9]
    assert len(SampledBatch((images, labels))(lambda x: x)) == 10
    assert len(SampledBatch(images, 99)(lambda x: x)) == 10


def test_halves_share_no_sample():
    first, second = SampledBatch([torch.arange(5.0)[:, None], torch.arange(5)]).halves()
    assert [half(lambda x: x).flatten().tolist() for half in (first, second)] == [[0, 1], [2, 3, 4]]
    assert second.labels(torch.zeros(3, 7)).tolist() == [2, 3, 4]
    assert SampledBatch([torch.zeros(1, 2)]).halves() is None
    mapping = SampledBatch({"x": torch.arange(4.0), "labels": torch.arange(4)}).halves()[1]
    assert mapping(lambda x: x).tolist() == [2, 3]


def test_a_mapping_hands_on_all_but_the_labels():
    batch = {"input_ids": torch.arange(6).reshape(2, 3), "flag": True, "labels": torch.arange(6).reshape(2, 3)}

    def network(input_ids, flag):
        assert flag
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 9))

    run = SampledBatch(batch)
    logits = run(network)
    assert logits.shape == (2, 3, 9)
    assert run.labels(logits).tolist() == [[1, 2, -1], [4, 5, -1]]
    assert run.labels(torch.zeros(2, 9)) is None


@pytest.mark.parametrize(
    "batch", [(torch.zeros(2, 3),), (torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), "no"), torch.zeros(2, 3)]
)
def test_a_batch_without_labels(batch):
    run = SampledBatch(batch)
    assert run.labels(run(lambda x: x)) is None


def test_what_gives_no_logits():
    run = SampledBatch((torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
    assert run(lambda x: (x, x)) is None
    assert run.labels(None) is None


@pytest.mark.parametrize(
    ("count", "chosen", "expected"),
    [
        (16, 2, {0, 8}),
        (16, 4, {0, 4, 8, 12}),
        (7, 3, {0, 2, 4}),
        (16, 1, {0}),
        (1, 3, {0}),
        (3, 9, {0, 1, 2}),
        (float("inf"), 2, {0, 1}),
    ],
)
def test_batches_are_spread(count, chosen, expected):
    assert spread_batches(count, chosen) == expected
