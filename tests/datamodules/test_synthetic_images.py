import pytest
import torch

from eigenscope.data import draw_images
from eigenscope.datamodules import SyntheticImagesDataModule

PLAIN = {"protocol": "test", "augmentation": "none", "num_workers": 0}


def test_splits_are_drawn_as_stated():
    data = SyntheticImagesDataModule(train_size=250, test_size=100, seed=5, image_size=24, batch_size=50, **PLAIN)
    assert (data.num_classes, data.image_size) == (100, 24)
    data.setup("fit")
    images = torch.cat([images for images, _ in data.val_dataloader()])
    drawn, labels = draw_images(5, "test", torch.arange(100), 24)
    assert torch.equal((images * 255).round().byte(), drawn)
    assert torch.equal(torch.cat([labels for _, labels in data.val_dataloader()]), labels)
    assert len(data.train_dataloader()) == 5


def test_the_runs_seed_changes_the_order_and_not_the_images():
    def epoch(seed):
        torch.manual_seed(seed)
        data = SyntheticImagesDataModule(train_size=100, test_size=1, batch_size=100, **PLAIN)
        data.setup("fit")
        return next(iter(data.train_dataloader()))[0].flatten(1)

    first, second = epoch(1), epoch(2)
    assert not torch.equal(first, second)
    assert {row.numpy().tobytes() for row in first} == {row.numpy().tobytes() for row in second}


@pytest.mark.parametrize("name", ["train_size", "test_size"])
def test_bad_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SyntheticImagesDataModule(**{name: 0})
