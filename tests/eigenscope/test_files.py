import errno
import os
import stat

import pytest

from eigenscope.files import replace_atomically


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replace_atomically(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), replace_atomically(path) as aside:
        aside.write_text("half") and aside.write_text(None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    umask = os.umask(0o022)
    try:
        with replace_atomically(tmp_path / "file") as aside:
            aside.write_text("new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_an_error_of_the_system_names_the_file(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space left") as full, replace_atomically(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError) as other, replace_atomically(path):
        (tmp_path / "another").read_text()
    assert (full.value.filename, other.value.filename) == (str(path), str(tmp_path / "another"))
