import pytest
import torch

from eigenscope.datamodules import HeavyTailedNoiseDataModule
from eigenscope.noise import NOISE_TYPES, Curriculum

SMALL = {"image_size": 8, "samples_per_epoch": 64, "val_samples_per_type": 2, "batch_size": 16, "num_workers": 0}


def data(seed=0, stage="fit", **options):
    torch.manual_seed(seed)
    made = HeavyTailedNoiseDataModule(**SMALL | options)
    made.setup(stage)
    return made


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def by_content(images, labels):
    return {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def test_an_epoch_holds_every_type_equally_often_and_is_new():
    loader = data().train_dataloader()
    images, labels = epoch(loader)
    assert images.shape == (64, 3, 8, 8)
    assert torch.equal(labels.bincount(), torch.full((16,), 4))
    assert not torch.equal(labels, labels.sort()[0])
    again, other, seeded = epoch(loader), epoch(loader, 1), epoch(data(seed=1).train_dataloader())
    assert torch.equal(again[0], images)
    for new in (other, seeded):
        assert not by_content(*new).keys() & by_content(images, labels).keys()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_samples_for_any_number_of_workers(workers):
    loader = data(num_workers=workers).train_dataloader()
    for number in (0, 1):
        here, there = epoch(data().train_dataloader(), number), epoch(loader, number)
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])


def test_the_same_samples_for_any_batch_size():
    one, other = epoch(data().train_dataloader()), epoch(data(batch_size=7).train_dataloader())
    images = by_content(*one)
    assert by_content(*other).items() <= images.items()
    assert len(by_content(*other)) == 63


def test_validation_and_test_sets_are_fixed_and_apart():
    first, second = data(), data(seed=1)
    val, labels = epoch(first.val_dataloader())
    assert torch.equal(labels.bincount(), torch.full((16,), 2))
    assert torch.equal(epoch(second.val_dataloader(), 5)[0], val)
    test = epoch(first.test_dataloader())
    sets = [by_content(val, labels), by_content(*test), by_content(*epoch(first.train_dataloader()))]
    assert not sets[0].keys() & sets[1].keys()
    assert not sets[0].keys() & sets[2].keys()


def test_clamp_and_types():
    bounded = epoch(data(clamp=4.0, types=["cauchy", "gaussian"]).train_dataloader())
    assert bounded[0].abs().max() <= 4
    assert set(bounded[1].tolist()) == {13, 0}
    assert epoch(data(types=["cauchy"]).train_dataloader())[0].abs().max() > 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_curriculum_reaches_workers_that_already_run(workers):
    tiers = [["gaussian"], ["cauchy", "pink"]]
    curriculum = Curriculum(patience=1, tiers=tiers)
    made = data(types=["gaussian", "pink", "cauchy"], curriculum=curriculum, num_workers=workers)
    train, val = made.train_dataloader(), made.val_dataloader()
    assert set(epoch(train)[1].tolist()) == {0}
    before = by_content(*epoch(val))
    curriculum.unlock_next(3)
    assert set(epoch(train, 2)[1].tolist()) == {0}
    assert set(epoch(train, 3)[1].tolist()) == {0, 4, 13}
    after = by_content(*epoch(val, 3))
    assert len(before) == len(after) == 6
    assert {image for image, label in after.items() if label == 0} < before.keys()  # of a type always the first ones


def test_outside_a_fit_all_types_are_seen():
    made = data(stage="validate", curriculum=Curriculum(epochs=[5, 8, 10, 12]))
    assert len(epoch(made.val_dataloader())[1].unique()) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": ["gauss"]}, "gauss"),
        ({"types": []}, "types must be at least 1"),
        ({"samples_per_epoch": 15}, "samples_per_epoch must be at least batch_size, 16, got 15"),
        ({"val_samples_per_type": 0}, "val_samples_per_type must be at least 1, got 0"),
        ({"image_size": 1}, "image_size must be at least 2, got 1"),
        ({"clamp": -4.0}, "clamp must be above 0 or None, got -4.0"),
        ({"types": ["pink"], "curriculum": Curriculum(patience=1, tiers=[["gaussian"]])}, "differ in .'gaussian', 'pi"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        HeavyTailedNoiseDataModule(**SMALL | options)


def test_labels_are_the_ids_of_names():
    assert HeavyTailedNoiseDataModule.label_names == NOISE_TYPES
    assert NOISE_TYPES[13] == "cauchy"
