from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_tree(tmp_path: Path):
    """Writes a small tree {train,test}/<class>/*.png of random images; returns its root."""

    def make(classes: int = 3, train: int = 6, test: int = 2, size: int = 32, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        root = tmp_path / "tree"
        for split, count in (("train", train), ("test", test)):
            for label in range(classes):
                folder = root / split / f"class{label:02d}"
                folder.mkdir(parents=True)
                for number in range(count):
                    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
                    to_pil_image(image).save(folder / f"{number:03d}.png")
        return root

    return make
