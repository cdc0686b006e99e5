import os
import re
import resource

import pytest
import torch

from eigenscope.checkpoints import previous_checkpoint, read_checkpoint, write_checkpoint


def content(number):
    return {"weights": torch.full((1000,), float(number)), "step": number}


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut short":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    else:
        place = data.find(torch.full((1000,), 2.0).numpy().tobytes())
        assert place > 0
        data[place + 100] ^= 1  # a number that is still a number
    path.write_bytes(bytes(data))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    for number in (1, 2):
        write_checkpoint(content(number), path)
    return path


def test_a_checkpoint_comes_back_and_keeps_the_one_before_it(path):
    assert read_checkpoint(path)["step"] == 2
    assert read_checkpoint(previous_checkpoint(path))["step"] == 1
    write_checkpoint(content(3), path)
    assert (read_checkpoint(path)["step"], read_checkpoint(previous_checkpoint(path))["step"]) == (3, 2)
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


@pytest.mark.parametrize("how", ["cut short", "empty", "a bit is wrong"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_read(path, how, capsys):
    damage(path, how)
    assert read_checkpoint(path)["step"] == 1
    printed = capsys.readouterr().out
    assert f"checkpoint {path} is damaged" in printed
    assert f"resuming from the previous one, {previous_checkpoint(path)}" in printed


def test_a_missing_newest_one_is_no_end_either(path, capsys):
    path.unlink()
    assert read_checkpoint(path)["step"] == 1
    assert "is missing" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["cut short", "empty", "a bit is wrong"])
def test_a_damaged_checkpoint_takes_nobodys_place(path, how):
    damage(path, how)
    write_checkpoint(content(3), path)
    assert (read_checkpoint(path)["step"], read_checkpoint(previous_checkpoint(path))["step"]) == (3, 1)


def test_what_a_killed_process_left_is_cleared_away(path):
    (path.parent / ".last.ckpt.half").write_text("half")
    (path.parent / ".best.ckpt.half").write_text("somebody else's")
    write_checkpoint(content(3), path)
    names = [".best.ckpt.half", "last.ckpt", "last.previous.ckpt"]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def test_without_hard_links_the_one_before_is_kept_too(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_checkpoint(content(3), path)
    assert (read_checkpoint(path)["step"], read_checkpoint(previous_checkpoint(path))["step"]) == (3, 2)


def test_a_file_of_torchs_former_format_is_called_that(tmp_path):
    torch.save({"step": 1}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="is not a zip archive, as torch writes, and there is none before it"):
        read_checkpoint(tmp_path / "old.pth")


def test_both_damaged(path):
    damage(path, "cut short")
    damage(previous_checkpoint(path), "empty")
    with pytest.raises(ValueError, match=re.escape(str(previous_checkpoint(path)))):
        read_checkpoint(path)
    previous_checkpoint(path).unlink()
    with pytest.raises(ValueError, match="there is none before it"):
        read_checkpoint(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no.ckpt does not exist"):
        read_checkpoint(tmp_path / "no.ckpt")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("size", [49_900, 60_000, 1_000_000])
def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_old_one(path, size):
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            write_checkpoint({"epoch": 2, "weights": [torch.zeros(size // 4) for _ in range(4)]}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert full.value.filename == str(path)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_reading_executes_no_code(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "surprise": Evil(tmp_path / "made")}, path)
    with pytest.raises(ValueError, match=r"evil.ckpt holds more than plain values and tensors.*mkdir"):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


def test_what_could_not_be_read_again_is_not_written(path):
    with pytest.raises(ValueError, match=r"last\.ckpt would hold more than plain values and tensors"):
        write_checkpoint({"surprise": Evil(path.parent / "made")}, path)
    assert read_checkpoint(path)["step"] == 2
    assert read_checkpoint(previous_checkpoint(path))["step"] == 1


def test_something_else_than_a_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="must hold a dictionary, got list"):
        read_checkpoint(tmp_path / "list.ckpt")
