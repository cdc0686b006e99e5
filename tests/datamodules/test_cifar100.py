import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from eigenscope.data.class_folders import decode_png
from eigenscope.datamodules import CIFAR100DataModule

OPTIONS = {"batch_size": 6, "num_workers": 0}


def published_archive(path, per_class=4):
    """An archive laid out as CIFAR-100's, with the md5 sums that torchvision checks."""
    rng = np.random.default_rng(0)
    sums = {}
    with tarfile.open(path, "w:gz") as archive:
        for name, count in (("train", per_class), ("test", 1), ("meta", 0)):
            labels = list(range(100)) * count
            entry = {"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "fine_labels": labels}
            content = pickle.dumps(entry if count else {"fine_label_names": [f"c{i}" for i in range(100)]})
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            sums[name] = hashlib.md5(content).hexdigest()
    return sums


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The archive, served on this machine, with torchvision told its address and sums."""
    path = tmp_path / "published" / "cifar-100-python.tar.gz"
    path.parent.mkdir()
    sums = published_archive(path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(path.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    yield path
    server.shutdown()
    server.server_close()


def test_download(archive, tmp_path):
    data = CIFAR100DataModule(str(tmp_path / "root"), protocol="holdout", holdout_fraction=0.25, **OPTIONS)
    assert (data.num_classes, data.image_size) == (100, 32)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert len(data.train_dataloader().dataset) == 300
    assert [len(loader().dataset) for loader in (data.val_dataloader, data.test_dataloader)] == [100, 100]
    original = CIFAR100(tmp_path / "root", train=False)
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (6, 3, 32, 32)
    np.testing.assert_array_equal((images[3] * 255).round().byte().permute(1, 2, 0).numpy(), original.data[3])
    assert labels.tolist() == original.targets[:6]


def test_a_damaged_download_is_refused(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="corrupted"):
        CIFAR100DataModule(str(tmp_path / "root")).prepare_data()


def test_folder(make_tree):
    root = make_tree(classes=4, train=10, test=3, size=24)
    data = CIFAR100DataModule(str(root), "folder", protocol="test", augmentation="none", **OPTIONS)
    assert (data.num_classes, data.image_size) == (4, 24)
    data.prepare_data()
    data.setup("fit")
    images = torch.cat([images for images, _ in data.val_dataloader()])
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal((images[4] * 255).round().byte(), decode_png(root / "test" / "class01" / "001.png"))
    assert len(data.train_dataloader()) == 6


def test_holdout_reads_the_test_set_only_when_testing(make_tree):
    data = CIFAR100DataModule(str(make_tree(classes=3, train=10)), "folder", holdout_fraction=0.2, **OPTIONS)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(KeyError, match="test"):
        data.test_dataloader()
    _, labels = next(iter(data.val_dataloader()))
    assert labels.bincount().tolist() == [2, 2, 2]
    kept = {image.numpy().tobytes() for image in data.train_dataloader().dataset.data.images}
    held_out = {image.numpy().tobytes() for image in data.val_dataloader().dataset.data.images}
    assert (len(kept), len(held_out), len(kept & held_out)) == (24, 6, 0)


def test_order_and_augmentation_follow_the_runs_seed(make_tree):
    root = str(make_tree(classes=3, train=10))

    def epoch(seed):
        torch.manual_seed(seed)
        data = CIFAR100DataModule(root, "folder", **OPTIONS)
        data.prepare_data()
        data.setup("fit")
        return torch.cat([images for images, _ in data.train_dataloader()])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"source": "hub"}, "source must be 'torchvision' or 'folder'"),
        ({"cache_dir": "x"}, "cache_dir is for source 'folder' only"),
        ({"protocol": "train"}, "protocol"),
        ({"holdout_fraction": 0.0}, "holdout_fraction"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_bad_arguments(arguments, word):
    with pytest.raises(ValueError, match=word):
        CIFAR100DataModule(**arguments)


def test_bad_folders(make_tree, tmp_path):
    with pytest.raises(ValueError, match="nowhere must hold the folders train and test"):
        _ = CIFAR100DataModule(str(tmp_path / "nowhere"), "folder").num_classes
    root = make_tree(classes=3, train=2)
    data = CIFAR100DataModule(str(root), "folder", protocol="test", batch_size=7)
    data.prepare_data()
    with pytest.raises(ValueError, match="batch_size must be at most 6, the training images, got 7"):
        data.setup("fit")
    (root / "train" / "class01" / "000.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"class01/000\.png is not a readable image"):
        CIFAR100DataModule(str(root), "folder").prepare_data()
