import pytest
import torch
from torch.utils.data import DataLoader

from eigenscope.data import EpochIndex, EpochSampler, ImageDataset, LabelledImages, augmentation, stratified_split


def labelled(count=40, classes=4, size=16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % classes)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("kind", ["recipe", "crop_flip"])
def test_a_sample_is_the_same_however_it_is_loaded(kind):
    data = ImageDataset(labelled(), augmentation(kind, 16), seed=3)
    alone = torch.stack([data[EpochIndex(2, i)][0] for i in range(40)])
    together = data.__getitems__([EpochIndex(2, i) for i in range(40)])[0]
    assert torch.equal(alone, together)
    for workers in (0, 1, 3):
        sampler = EpochSampler(40, shuffle=True, even=True, seed=1)
        sampler.set_epoch(2)
        loader = DataLoader(
            data, batch_size=7, sampler=sampler, num_workers=workers, collate_fn=lambda batch: batch, drop_last=False
        )
        order = [key.sample for key in sampler]
        assert torch.equal(torch.cat([images for images, _ in loader]), alone[order]), workers


def test_epochs_and_seeds_see_other_augmentations_and_the_global_generator_is_left_alone():
    keys = [EpochIndex(0, i) for i in range(40)]
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first = ImageDataset(labelled(), augmentation("crop_flip", 16), seed=0).__getitems__(keys)[0]
    assert torch.equal(torch.get_rng_state(), state)
    later = ImageDataset(labelled(), augmentation("crop_flip", 16), seed=0).__getitems__(
        [EpochIndex(1, i) for i in range(40)]
    )[0]
    other = ImageDataset(labelled(), augmentation("crop_flip", 16), seed=1).__getitems__(keys)[0]
    for images in (later, other):
        assert (images != first).flatten(1).any(1).float().mean() > 0.9


def test_plain_integers_are_samples_of_the_first_epoch():
    data = ImageDataset(labelled(), augmentation("crop_flip", 16))
    assert torch.equal(data[7][0], data[EpochIndex(0, 7)][0])
    assert len(next(iter(DataLoader(data, batch_size=4, collate_fn=lambda batch: batch)))[1]) == 4


def test_values_and_the_crop():
    data = labelled()
    images, labels = ImageDataset(data).__getitems__([EpochIndex(0, 5), EpochIndex(0, 4)])
    assert torch.equal(images, data.images[[5, 4]].float() / 255)
    assert torch.equal(labels, data.labels[[5, 4]])
    cropped = ImageDataset(data, augmentation("crop_flip", 16)).__getitems__([EpochIndex(0, i) for i in range(40)])[0]
    padded = torch.nn.functional.pad(data.images[0].float() / 255, (2, 2, 2, 2))
    windows = padded.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    allowed = torch.cat([windows, windows.flip(-1)])
    assert (allowed == cropped[0]).flatten(1).all(1).any()


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="augmentation must be one of recipe, crop_flip, none, got 'mixup'"):
        augmentation("mixup", 32)


@pytest.mark.parametrize(("size", "ranks"), [(10, 1), (10, 3), (12, 4), (2, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("even", [True, False])
def test_ranks_share_an_epoch(size, ranks, shuffle, even):
    options = {"shuffle": shuffle, "even": even, "seed": 4}
    one = [key.sample for key in EpochSampler(size, **options)]
    samplers = [EpochSampler(size, **options, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    parts = [[key.sample for key in sampler] for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    seen = [sample for part in parts for sample in part]
    assert len(set(seen)) == len(seen)
    if even:
        assert len({len(part) for part in parts}) == 1
        assert set(seen) == set(one[: size - size % ranks])
    else:
        assert sorted(seen) == list(range(size))
    whole = [sample for step in zip(*parts, strict=False) for sample in step]
    assert whole == one[: len(whole)]


def test_orders_differ_by_epoch_and_seed_and_repeat():
    def order(seed, epoch):
        sampler = EpochSampler(50, shuffle=True, even=True, seed=seed)
        sampler.set_epoch(epoch)
        assert {key.epoch for key in sampler} == {epoch}
        return tuple(key.sample for key in sampler)

    assert order(0, 1) == order(0, 1)
    assert len({order(0, 0), order(0, 1), order(1, 0), tuple(range(50))}) == 4


def test_stratified_split():
    labels = torch.tensor([0] * 20 + [1] * 10 + [3] * 40)
    labels = labels[torch.randperm(70, generator=torch.Generator().manual_seed(0))]
    kept, held_out = stratified_split(labels, 0.2, seed=1)
    assert labels[held_out].bincount().tolist() == [4, 2, 0, 8]
    assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(70))
    assert torch.equal(stratified_split(labels, 0.2, seed=1)[1], held_out)
    assert not torch.equal(stratified_split(labels, 0.2, seed=2)[1], held_out)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.01, 0.99])
def test_a_split_that_empties_a_class(fraction):
    with pytest.raises(ValueError, match="fraction"):
        stratified_split(torch.tensor([0, 0, 0, 1, 1, 1]), fraction, seed=0)
