import os
import shutil

import pytest
import torch
from PIL import Image

from eigenscope.data import class_names, read_class_folders
from eigenscope.data.class_folders import decode_png


def test_reads_every_image_in_order_with_its_label(make_tree, tmp_path):
    root = make_tree(classes=3, train=4, test=2)
    images, labels = read_class_folders(root, "train", tmp_path / "cache")
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(images[5], decode_png(root / "train" / "class01" / "001.png"))


def test_the_second_time_no_png_is_decoded(make_tree, tmp_path):
    root = make_tree()
    first = read_class_folders(root, "test", tmp_path / "cache")
    for path in (root / "test").rglob("*.png"):  # same size and time, other content
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = read_class_folders(root, "test", tmp_path / "cache")
    assert torch.equal(first.images, second.images)


def test_a_changed_tree_is_read_again(make_tree, tmp_path):
    root = make_tree()
    read_class_folders(root, "train", tmp_path / "cache")
    Image.new("RGB", (32, 32)).save(root / "train" / "class00" / "999.png")
    assert len(read_class_folders(root, "train", tmp_path / "cache").labels) == 19


def test_a_cache_written_halfway_is_never_read(make_tree, tmp_path, monkeypatch):
    root, cache = make_tree(), tmp_path / "cache"

    def die_halfway(decoded, file):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die_halfway)
        with pytest.raises(ValueError, match=r"cache_dir .*cache cannot be written \(disk full\)"):
            read_class_folders(root, "train", cache)
    assert list(cache.iterdir()) == []
    assert len(read_class_folders(root, "train", cache).labels) == 18


def break_tree(root, how):
    match how:
        case "no root":
            shutil.rmtree(root)
        case "half-missing":
            shutil.rmtree(root / "test")
        case "empty split":
            shutil.rmtree(root / "train")
            (root / "train").mkdir()
        case "class in one split":
            shutil.rmtree(root / "test" / "class01")
        case "empty class":
            shutil.rmtree(root / "train" / "class01")
            (root / "train" / "class01").mkdir()
        case "unreadable image":
            (root / "train" / "class01" / "002.png").write_bytes(b"not a png")
        case "truncated image":
            path = root / "train" / "class01" / "002.png"
            path.write_bytes(path.read_bytes()[:200])
        case "other size":
            Image.new("RGB", (32, 16)).save(root / "train" / "class02" / "000.png")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no root", "tree must hold the folders train and test: .*train is missing"),
        ("half-missing", "test is missing"),
        ("empty split", "train holds no class folders"),
        ("class in one split", "train/class01 has no counterpart .*test/class01"),
        ("empty class", r"train/class01 holds no \*.png"),
        ("unreadable image", "class01/002.png is not a readable image"),
        ("truncated image", "class01/002.png is not a readable image"),
        ("other size", "class02/000.png is 32×16 but .*class00/000.png is 32×32"),
    ],
)
def test_broken_trees_are_named(make_tree, tmp_path, how, message):
    root = make_tree()
    break_tree(root, how)
    with pytest.raises(ValueError, match=message):
        read_class_folders(root, "train", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_class_names_are_sorted(make_tree):
    assert class_names(make_tree(classes=12))[:2] == ["class00", "class01"]
