import pytest
import torch

from eigenscope.data import RecallTask, ShorterContext, draw_recall
from eigenscope.datamodules import AssociativeRecallDataModule
from eigenscope.noise import stream_key

TASK = RecallTask(context=12, pairs=3, queries=2, keys=5, values=5, fillers=2)


def data(seed=0, **options):
    torch.manual_seed(seed)
    given = {"task": TASK, "samples_per_epoch": 40, "val_samples": 10, "batch_size": 16, "num_workers": 0}
    made = AssociativeRecallDataModule(**given | options)
    made.setup("fit")
    return made


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    tokens, labels = zip(*loader, strict=True)
    return torch.cat(tokens), torch.cat(labels)


def as_set(tokens):
    return {tuple(row) for row in tokens.tolist()}


def test_training_sequences_follow_seed_and_epoch():
    loader = data(seed=5).train_dataloader()
    tokens, labels = epoch(loader, 3)
    assert tokens.shape == labels.shape == (32, 14)  # whole batches only
    assert as_set(tokens) <= as_set(draw_recall(TASK, stream_key(5, 3), torch.arange(40))[0])
    assert torch.equal(epoch(loader, 3)[0], tokens)
    assert not as_set(epoch(loader, 4)[0]) & as_set(tokens)
    assert not as_set(epoch(data(seed=6).train_dataloader(), 3)[0]) & as_set(tokens)


@pytest.mark.parametrize("options", [{"batch_size": 8}, {"num_workers": 2}])
def test_the_same_however_they_are_loaded(options):
    tokens = epoch(data().train_dataloader(), 1)[0]
    other = epoch(data(**options).train_dataloader(), 1)[0]
    assert torch.equal(other[: len(tokens)], tokens)


def test_held_out_sets_are_the_same_in_every_run_and_epoch():
    one, other = data(seed=0), data(seed=1)
    val, test = (epoch(loader)[0] for loader in (one.val_dataloader(), one.test_dataloader()))
    assert val.shape == test.shape == (10, 14)
    assert torch.equal(epoch(other.val_dataloader(), 7)[0], val)
    assert torch.equal(epoch(other.test_dataloader(), 7)[0], test)
    assert torch.equal(epoch(other.predict_dataloader())[0], test)
    assert not as_set(val) & as_set(test)


def test_shorter_contexts_are_for_training_alone():
    made = data(shorter=[ShorterContext(epochs=1, context=2, pairs=1)])
    loader = made.train_dataloader()
    assert epoch(loader, 0)[0].shape == (32, 2 + 1)
    assert epoch(loader, 1)[0].shape == (32, 14)
    assert epoch(made.val_dataloader())[0].shape == (10, 14)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples_per_epoch": 15}, "samples_per_epoch must be at least batch_size, 16, got 15"),
        ({"val_samples": 0}, "val_samples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be 'auto' or at least 0, got -1"),
        ({"shorter": [ShorterContext(1, 5, 3)]}, "context must hold pairs 3 of two tokens each, got 5"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        data(**wrong)
