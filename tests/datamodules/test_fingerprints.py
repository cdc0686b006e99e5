"""What a fingerprint depends on, and what it does not."""

from itertools import pairwise

import pytest
import torch

from eigenscope.data import RecallTask, ShorterContext
from eigenscope.datamodules import (
    AssociativeRecallDataModule,
    CIFAR100DataModule,
    GradientSpikeDataModule,
    HeavyTailedNoiseDataModule,
    SyntheticImagesDataModule,
)
from eigenscope.datamodules.loaders import fingerprint
from eigenscope.noise import Curriculum
from eigenscope.protocols import Fingerprinted

TASK = {"context": 16, "pairs": 4, "queries": 4, "keys": 8, "values": 8, "fillers": 4}
TIERS = {"tiers": [["gaussian"], ["cauchy"]]}


def noise(**options):
    plain = {"types": ["gaussian", "cauchy"], "image_size": 8, "samples_per_epoch": 64, "val_samples_per_type": 2}
    return HeavyTailedNoiseDataModule(**plain | {"batch_size": 4, "num_workers": 0} | options)


def paced(**options):
    return noise(curriculum=Curriculum(**TIERS | options))


def recall(shorter=(), task=None, **options):
    plain = {"samples_per_epoch": 64, "val_samples": 8, "batch_size": 4, "num_workers": 0}
    return AssociativeRecallDataModule(RecallTask(**TASK | (task or {})), shorter, **plain | options)


def spike(**options):
    return GradientSpikeDataModule(**{"rows": 3, "columns": 2, "steps": 9, "spike_step": 5} | options)


def images(**options):
    plain = {"train_size": 200, "test_size": 100, "protocol": "test", "batch_size": 4, "num_workers": 0}
    return SyntheticImagesDataModule(**plain | options)


def of(data, seed=0, stage="fit"):
    torch.manual_seed(seed)
    data.prepare_data()
    data.setup(stage)
    return data.fingerprint()


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (noise, {"batch_size": 8}),
        (paced, {"epochs": [1]}),
        (lambda **options: paced(patience=2), {"patience": 2}),
        (recall, {"batch_size": 8}),
        (spike, {}),
        (images, {"batch_size": 8, "augmentation": "none"}),
    ],
)
def test_equal_data_have_one_fingerprint_whatever_the_seed_of_the_run(make, other):
    data = {"epochs": [1]} if make is paced else {}
    first = make(**data)
    assert isinstance(first, Fingerprinted)
    found = of(first)
    assert found == of(first) == of(make(**other), seed=1)
    assert all(len(text.partition(" ")[0]) == 12 for text in found.values())


@pytest.mark.parametrize(
    ("make", "plain", "other", "sets"),
    [
        (noise, {}, {"types": ["cauchy", "gaussian"]}, {"train", "val", "test"}),
        (noise, {}, {"image_size": 4}, {"train", "val", "test"}),
        (noise, {}, {"clamp": 50.0}, {"train", "val", "test"}),
        (noise, {}, {"samples_per_epoch": 65}, {"train"}),
        (noise, {}, {"val_samples_per_type": 3}, {"val", "test"}),
        (noise, {}, {"curriculum": Curriculum(epochs=[1], **TIERS)}, {"train", "val"}),
        (paced, {"epochs": [1]}, {"epochs": [2]}, {"train", "val"}),
        (paced, {"patience": 1}, {"patience": 2}, {"train", "val"}),
        (paced, {"patience": 1}, {"patience": 1, "monitor": "val/loss"}, {"train", "val"}),
        (recall, {}, {"task": {"fillers": 5}}, {"train", "val", "test"}),
        (recall, {}, {"shorter": [ShorterContext(1, 8, 2)]}, {"train"}),
        (recall, {}, {"val_samples": 9}, {"val", "test"}),
        (spike, {}, {"seed": 1}, {"train"}),
        (spike, {}, {"spike_scale": 5.0}, {"train"}),
        (spike, {}, {"spike_step": 6}, {"train"}),
        (spike, {}, {"steps": 10}, {"train"}),
        (images, {}, {"seed": 1}, {"train", "val", "test"}),
        (images, {}, {"train_size": 300}, {"train"}),
        (images, {}, {"image_size": 16}, {"train", "val", "test"}),
    ],
)
def test_other_data_have_another(make, plain, other, sets):
    before, after = of(make(**plain)), of(make(**other))
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == sets


def test_the_sets_of_images_are_those_that_were_loaded(make_tree):
    assert images().fingerprint() == {}
    both = of(images())
    assert both["val"] == both["test"] != both["train"]
    held_out = images(protocol="holdout", holdout_fraction=0.5)
    assert set(of(held_out)) == {"train", "val"}
    assert of(held_out, stage="test")["test"] == both["test"]
    tree = of(CIFAR100DataModule(str(make_tree()), "folder", protocol="test", batch_size=4, num_workers=0))
    assert set(tree) == {"train", "val", "test"}
    assert tree["train"].endswith(" (18 samples)")


def test_the_progress_of_a_curriculum_does_not_change_its_data():
    data = paced(patience=2)
    before = of(data)
    data.curriculum.unlock_next(3)
    assert data.fingerprint() == before


def test_every_byte_counts_and_so_do_shape_and_dtype():
    base = torch.zeros(2, 3, dtype=torch.int32)
    one = base.clone()
    one[1, 2] = 1
    variants = [base, one, base.T, base.flatten(), base.float(), base.to(torch.int64), [[0, 0, 0], [0, 0, 0]]]
    digests = sorted(fingerprint(6, variant) for variant in variants)
    assert all(a != b for a, b in pairwise(digests))
    assert fingerprint(6, one.T) == fingerprint(6, one.T.contiguous())
    assert fingerprint(6, base, base) != fingerprint(6, base)
    assert fingerprint(12345, base).endswith(" (12,345 samples)")
