"""Trees of images as people have them: each is read right, or named in one sentence."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eigenscope.data import class_names, image_files, read_class_folders
from eigenscope.data.class_folders import list_class_folders, skipped_lines
from eigenscope.data.image_files import decode_image


def test_reads_every_image_in_order_with_its_label(make_tree, tmp_path):
    root = make_tree(classes=3, train=4, test=2)
    images, labels = read_class_folders(root, "train", tmp_path / "cache")
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(images[5], decode_image(root / "train" / "class01" / "001.png").image)


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


def put(root, name, content=b"x"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_other_rules_of_reading_make_another_cache(make_tree, tmp_path, monkeypatch):
    root, cache = make_tree(), tmp_path / "cache"
    read_class_folders(root, "train", cache)
    changed = tmp_path / "image_files.py"
    changed.write_text(Path(image_files.__file__).read_text() + "# another rule")
    monkeypatch.setattr(image_files, "__file__", str(changed))
    read_class_folders(root, "train", cache)
    assert len(list(cache.iterdir())) == 2


def test_endings_may_be_mixed_and_in_any_case(tmp_path):
    endings = ["png", "PNG", "jpg", "JPG", "jpeg", "Jpeg", "bmp", "tif", "TIFF", "webp", "gif", "ppm", "pgm"]
    for split in ("train", "test"):
        for shade, ending in enumerate(endings):
            folder = tmp_path / "tree" / split / "mixed"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * shade).save(folder / f"{shade:02d}.{ending}")
    images, _ = read_class_folders(tmp_path / "tree", "train", tmp_path / "cache")
    assert (images[:, 0, 0, 0] - 10.0 * torch.arange(len(endings))).abs().max() <= 1
    assert skipped_lines(tmp_path / "tree") == []


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    for split in ("train", "test"):
        (tmp_path / split / "ramp").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / split / "ramp" / "0.png")
    images, _ = read_class_folders(tmp_path, "train", tmp_path / "cache")
    assert (images[0].double() - torch.from_numpy(values / 257)).abs().max() <= 0.5


def test_what_is_skipped_is_counted_aloud(make_tree):
    root = make_tree()
    for name in ("a.txt", "b.TXT", "labels.csv", "deep/notes"):
        put(root, f"train/class00/{name}")
    put(root, "train/README.md")
    put(root, "train/stray.png")
    put(root, "val/class00/000.png")
    put(root, "annotations/a.txt")
    assert skipped_lines(root) == [
        f"skipped 5 files in {root}/train that are not images: 2 .txt, 1 without an ending, 1 .csv, 1 .md",
        f"skipped 1 image beside the class folders, such as {root}/train/stray.png",
        f"skipped beside train and test in {root}: annotations, val",
    ]
    put(root, "test/class02/one.txt")
    assert skipped_lines(root)[-2] == f"skipped 1 file in {root}/test that is not an image: 1 .txt"


def test_what_systems_leave_is_ignored(make_tree, tmp_path):
    root = make_tree()
    plain = read_class_folders(root, "train", tmp_path / "cache")
    for folder in ("train", "train/class00"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", "Icon\r", "ehthumbs.db"):
            put(root, f"{folder}/{name}")
        for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle", "lost+found"):
            put(root, f"{folder}/{name}/000.png")
    again = read_class_folders(root, "train", tmp_path / "cache")
    assert torch.equal(plain.images, again.images)
    assert skipped_lines(root) == []
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_folders_inside_a_class_folder_belong_to_it(make_tree):
    root = make_tree(classes=1)  # as Tiny ImageNet's <class>/images/*.JPEG
    for split in ("train", "test"):
        (root / split / "class00" / "images").mkdir()
        for path in (root / split / "class00").glob("*.png"):
            path.rename(path.parent / "images" / path.name)
    assert len(list_class_folders(root, "train").images["class00"]) == 6
    line = "images in folders inside a class folder belong to that class, such as"
    nested = root / "train" / "class00" / "images" / "000.png"
    assert skipped_lines(root)[0] == f"6 {line} {nested}"


def test_links_spaces_and_letters_are_read(make_tree, tmp_path):
    root = make_tree(classes=2)
    plain = read_class_folders(root, "train", tmp_path / "cache").images
    for split in ("train", "test"):
        elsewhere = tmp_path / f"elsewhere {split}"
        (root / split / "class01").rename(elsewhere)
        (root / split / "猫 über").symlink_to(elsewhere)
        (elsewhere / "000.png").rename(elsewhere / "ä ö.png")
        (elsewhere / "000.png").symlink_to(elsewhere / "ä ö.png")
    assert class_names(root) == ["class00", "猫 über"]
    images, labels = read_class_folders(root, "train", tmp_path / "cache")
    assert labels.bincount().tolist() == [6, 7]
    assert torch.equal(images[:7], plain[:7])


def test_transparency_is_said(make_tree, tmp_path, capsys):
    root = make_tree(classes=1)
    path = root / "train" / "class00" / "001.png"
    with Image.open(path) as image:
        image.putalpha(0)
        image.save(path)
    read_class_folders(root, "train", tmp_path / "cache")
    expected = f"transparency is not applied: 1 of 6 images show the colours stored behind it, such as {path}"
    assert expected in capsys.readouterr().out


def remove(name):
    return lambda root: shutil.rmtree(root / name)


def empty(name):
    def change(root):
        shutil.rmtree(root / name)
        (root / name).mkdir()

    return change


def content(data, name="train/class01/002.png"):
    return lambda root: (root / name).write_bytes(data)


def truncate(root):
    path = root / "train" / "class01" / "002.png"
    path.write_bytes(path.read_bytes()[:200])


def flatten(root):
    for path in list((root / "train").rglob("*.png")):
        path.rename(root / "train" / f"{path.parent.name}-{path.name}")
    for path in list((root / "train").iterdir()):
        if path.is_dir():
            path.rmdir()


def only_text(root):
    for path in (root / "train" / "class01").iterdir():
        path.rename(path.with_suffix(".npy"))


def packed(root):
    shutil.rmtree(root)
    root.write_bytes(b"PK")


def renamed(split, name, other):
    return lambda root: (root / split / name).rename(root / split / other)


def decomposed(root):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        (root / split / "class01").rename(root / split / unicodedata.normalize(form, "café"))


def linked(root):
    (root / "train" / "class01" / "loop").symlink_to(root / "train" / "class01")


def lost_link(root):
    (root / "train" / "class01" / "999.png").symlink_to("nowhere.png")


def pipe(root):
    os.mkfifo(root / "train" / "class01" / "999.png")


def forbidden(root):
    (root / "train" / "class01").chmod(0)


FAULTS: dict[str, tuple[Callable, str]] = {
    "no root": (lambda root: shutil.rmtree(root), "tree must hold the folders train and test: .*; there is no .*tree"),
    "an archive": (packed, "tree is a file; if it is an archive, unpack it"),
    "half-missing": (remove("test"), "test is missing; it holds train$"),
    "val for test": (lambda root: (root / "test").rename(root / "val"), "test is missing; it holds train, val$"),
    "empty split": (empty("train"), "train holds no class folders"),
    "no class folders": (flatten, "train holds 18 images, but no class folders; expected its images in it as <class>"),
    "class in train alone": (remove("test/class01"), "train/class01 has no counterpart .*test/class01$"),
    "class in test alone": (remove("train/class01"), "test/class01 has no counterpart .*train/class01$"),
    "upper case": (
        renamed("test", "class01", "Class01"),
        r"test/Class01 has no counterpart .*train/Class01; .*train/class01 is spelt otherwise \('class01', 'Class01'\)",
    ),
    "another encoding of letters": (decomposed, r"no counterpart .* \('caf\\xe9', '.*\\u0301'\)"),
    "empty class": (empty("train/class01"), "train/class01 holds no image$"),
    "class of other files": (only_text, "train/class01 holds no image, but 6 .npy$"),
    "not an image": (content(b"not a png"), "class01/002.png is not a readable image: Pillow finds no PNG"),
    "no bytes": (content(b""), "class01/002.png is not a readable image: it is empty"),
    "truncated": (truncate, "class01/002.png is not a readable image"),
    "a link to nowhere": (lost_link, "999.png is not a readable image: its link leads to nowhere.png"),
    "a pipe": (pipe, "999.png is not a readable image: it is not a regular file"),
    "a loop of links": (linked, "class01/loop is a link to .*class01, which holds it"),
    "a forbidden folder": (forbidden, "folder .*class01 cannot be read: Permission denied"),
    "other size": (
        lambda root: Image.new("RGB", (32, 16)).save(root / "train" / "class02" / "000.png"),
        "class02/000.png is 32×16 but .*class00/000.png is 32×32",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_trees_are_named(make_tree, tmp_path, fault):
    if "forbidden" in fault and os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    change, message = FAULTS[fault]
    root = make_tree()
    change(root)
    with pytest.raises(ValueError, match=message) as caught:
        read_class_folders(root, "train", tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_class_names_are_sorted(make_tree):
    assert class_names(make_tree(classes=12))[:2] == ["class00", "class01"]
