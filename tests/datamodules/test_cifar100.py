import contextlib
import hashlib
import io
import os
import pickle
import re
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from eigenscope.data import cifar100_files
from eigenscope.data.image_files import decode_image
from eigenscope.datamodules import CIFAR100DataModule

OPTIONS = {"batch_size": 6, "num_workers": 0}
NAME = "cifar-100-python.tar.gz"


def published_files(per_class=4):
    """Files laid out as CIFAR-100's, by their names."""
    rng = np.random.default_rng(0)
    files = {"meta": pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]})}
    for name, count in (("train", per_class), ("test", 1)):
        labels = list(range(100)) * count
        entry = {"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "fine_labels": labels}
        files[name] = pickle.dumps(entry)
    return files


def pack(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def tell(monkeypatch, files):
    """Makes files the published ones."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def files(monkeypatch):
    """The published files; nobody answers at the published address."""
    files = published_files()
    tell(monkeypatch, files)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}")
        yield files


@contextlib.contextmanager
def serving(monkeypatch, handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{NAME}")
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def archive(files, tmp_path, monkeypatch):
    """The archive, served on this machine."""
    path = tmp_path / "published" / NAME
    path.parent.mkdir()
    pack(path, files)
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    with serving(monkeypatch, partial(QuietHandler, directory=str(path.parent))):
        yield path


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


FOLDER = "give images as files with --data.init_args.source folder --data.init_args.root FOLDER"


def left_in(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def unavailable(root, reason):
    """The sentence when nothing is there and nothing comes."""
    return (
        f"CIFAR-100 is not in {root} (neither cifar-100-python nor {NAME}) and cannot be downloaded from "
        f"{CIFAR100.url} ({reason}): put the archive there as {root / NAME}, or {FOLDER}"
    )


def refused(root):
    """What is said before a network is built, and by whoever begins with the data."""
    sentences = []
    for ask in (lambda data: data.num_classes, lambda data: data.image_size, lambda data: data.prepare_data()):
        with pytest.raises(ValueError, match=re.escape(str(root))) as caught:
            ask(CIFAR100DataModule(str(root)))
        sentences.append(str(caught.value))
    assert len(set(sentences)) == 1
    assert "\n" not in sentences[0]
    return sentences[0]


def test_no_network_is_one_sentence_at_once(files, tmp_path, monkeypatch, capsys):
    started = time.monotonic()
    assert refused(tmp_path / "root") == unavailable(tmp_path / "root", "Connection refused")
    monkeypatch.setattr(CIFAR100, "url", f"https://nowhere.invalid/{NAME}")
    assert "https://nowhere.invalid" in refused(tmp_path / "root")
    assert time.monotonic() - started < 3
    announced = capsys.readouterr().out.splitlines()[0]
    assert announced.startswith(f"CIFAR-100 is not in {tmp_path / 'root'} (neither cifar-100-python nor {NAME}): ")
    assert announced.endswith(f"to {tmp_path / 'root' / NAME}; to do without, {FOLDER}")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_what_the_server_answers_is_said(files, tmp_path, monkeypatch, status):
    class Refusing(QuietHandler):
        def do_GET(self):
            self.send_error(status)

    with serving(monkeypatch, Refusing):
        assert f"(HTTP Error {status}: " in refused(tmp_path / "root")


def test_a_server_that_never_answers_is_not_waited_for(files, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100_files, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}")
        assert refused(tmp_path / "root") == unavailable(tmp_path / "root", "no answer within 0.3 s")


def test_a_download_is_whole_or_nothing(archive, tmp_path, monkeypatch):
    root, whole = tmp_path / "root", archive.read_bytes()
    archive.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"\(what came is not the archive: MD5 \w+, not \w+\): put the archive there"):
        CIFAR100DataModule(str(root)).prepare_data()
    assert left_in(root) == []

    class Breaking(QuietHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])

    with serving(monkeypatch, Breaking), pytest.raises(ValueError, match=r"\(it ended after [\d,]+ of [\d,]+ bytes\)"):
        CIFAR100DataModule(str(root)).prepare_data()
    assert left_in(root) == []


def test_what_a_killed_download_left_is_never_read(archive, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / f".{NAME}.abc123").write_bytes(archive.read_bytes()[:100])
    CIFAR100DataModule(str(root)).prepare_data()
    assert left_in(root) == [NAME, *(f"cifar-100-python/{name}" for name in ("meta", "test", "train"))]


def test_two_processes_share_one_download(archive, tmp_path, monkeypatch):
    asked = []

    class Counting(QuietHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    with serving(monkeypatch, partial(Counting, directory=str(archive.parent))), ThreadPoolExecutor(2) as threads:
        list(threads.map(cifar100_files.fetch_cifar100, [tmp_path / "root"] * 2))
    assert len(asked) == 1
    assert cifar100_files.read_cifar100(tmp_path / "root", "test").labels.tolist() == list(range(100))


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz"])
def test_an_archive_that_was_packed_anew_is_read_if_its_files_are_the_published_ones(files, tmp_path, mode):
    pack(tmp_path / NAME, {"more": b"x", **files}, mode)
    data = CIFAR100DataModule(str(tmp_path), protocol="test", **OPTIONS)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 400


def cut(root, files):
    pack(root / NAME, files)
    (root / NAME).write_bytes((root / NAME).read_bytes()[:5000])


def other_content(root, files):
    pack(root / NAME, {**files, "train": b"x"})


def other_members(root, files):
    pack(root / NAME, {"data_batch_1": b"x"})


def extract(root, files):
    for name, content in files.items():
        path = root / "cifar-100-python" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda root, files: (root / NAME).write_bytes(b""),
            rf"{NAME} is damaged or cut short \(it is no tar archive\); remove it to",
        ),
        (lambda root, files: (root / NAME).write_bytes(b"<html>"), rf"{NAME} is damaged or cut short"),
        (cut, rf"{NAME} is damaged or cut short \(Compressed file ended"),
        (other_content, rf"{NAME} is not the published archive: its train has another MD5; remove it to"),
        (
            other_members,
            rf"{NAME} is not the published archive: it holds no cifar-100-python/train, but "
            "cifar-100-python/data_batch_1; remove it to download it again, or give",
        ),
        (
            lambda root, files: extract(root, {name: files[name] for name in ("train", "test")}),
            rf"cifar-100-python is incomplete: meta is missing, and so is the archive .*/{NAME}; put the archive there",
        ),
        (
            lambda root, files: extract(root, {**files, "train": files["train"][:-1]}),
            r"cifar-100-python/train is damaged or not the published file \(MD5 \w+ instead of \w+\); remove it",
        ),
        (lambda root, files: (root / "cifar-100-python/train").mkdir(parents=True), "train cannot be read: Is a dir"),
    ],
)
def test_what_is_damaged_or_packed_anew_is_named(files, tmp_path, damage, sentence):
    damage(tmp_path, files)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    found = refused(tmp_path)
    assert re.search(sentence, found)
    assert before == {path: path.read_bytes() for path in before}


def test_a_file_that_is_missing_is_taken_from_the_archive(files, tmp_path):
    pack(tmp_path / NAME, files)
    extract(tmp_path, {"train": files["train"]})
    CIFAR100DataModule(str(tmp_path)).prepare_data()
    assert (tmp_path / "cifar-100-python" / "test").read_bytes() == files["test"]
    (tmp_path / NAME).unlink()
    CIFAR100DataModule(str(tmp_path)).prepare_data()


def test_a_root_that_cannot_be_written(archive, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"root .*file/root cannot be written \(.*Not a directory.*\); name a folder"):
        CIFAR100DataModule(str(tmp_path / "file" / "root")).prepare_data()


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"data": Foreign()}), "it asks for posix.mkdir"),
        (b"not a pickle", ""),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}), "2 images, 1 labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "'fine_labels'"),
    ],
)
def test_a_pickle_executes_nothing(files, tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    tell(monkeypatch, {**files, "train": content})
    extract(tmp_path, {**files, "train": content})
    data = CIFAR100DataModule(str(tmp_path), **OPTIONS)
    data.prepare_data()
    with pytest.raises(ValueError, match=f"train does not hold images as CIFAR-100 does: {reason}"):
        data.setup("fit")
    assert not Path("was_here").exists()


def test_folder(make_tree):
    root = make_tree(classes=4, train=10, test=3, size=24)
    data = CIFAR100DataModule(str(root), "folder", protocol="test", augmentation="none", **OPTIONS)
    assert (data.num_classes, data.image_size) == (4, 24)
    data.prepare_data()
    data.setup("fit")
    images = torch.cat([images for images, _ in data.val_dataloader()])
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal((images[4] * 255).round().byte(), decode_image(root / "test" / "class01" / "001.png").image)
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
