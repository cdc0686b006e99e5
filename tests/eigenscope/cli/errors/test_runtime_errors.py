import errno
import json
import os
import resource
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import UnidentifiedImageError
from torch._utils import ExceptionWrapper

from eigenscope.cli.errors.runtime_errors import check_writable, explain, leave_to_main_thread

NOTHING = "; no checkpoint had been saved before"


class Unit(Exception):
    """Of a module that a traceback names."""


def raised(error, cause=None, context=None):
    try:
        try:
            if context is not None:
                raise context
        finally:
            raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_by_any_name(number):
    words = os.strerror(number)
    assert explain(OSError(number, words, "runs/a")) == f"runs/a could not be written: {words}"
    assert explain(OSError(number, words)) == f"a file could not be written: {words}"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EIO])
def test_a_file_that_cannot_be_used(number):
    words = os.strerror(number)
    assert explain(OSError(number, words, b"runs/a")) == f"runs/a could not be used: {words}"
    assert explain(OSError(number, words)) is None


def test_the_first_of_a_chain_is_told():
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    later = OSError(errno.EDQUOT, "Disk quota exceeded", "runs/b")
    for error in (raised(ValueError("not supported"), cause=full), raised(later, context=full)):
        assert explain(error) == "runs/a could not be written: No space left on device"


def test_the_path_is_read_from_the_code_that_was_writing():
    def write(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        write(Path("runs/a"))
    assert explain(caught.value) == "runs/a could not be written: No space left on device"


def test_the_file_of_a_csv_logger_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    board = CSVLogger(tmp_path, name="csv")
    board.log_metrics({"loss": 1.0}, step=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as full:
            board.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert explain(full.value) == f"{board.log_dir}/metrics.csv could not be written: File too large"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("lr must be at least 0, got -1"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "data"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_keep_their_traceback(error):
    assert explain(error) is None
    assert explain(raised(error, context=KeyError("a"))) is None


def test_the_checkpoint_to_go_on_from_is_the_runs_last(tmp_path):
    class Keeps:
        dirpath = str(tmp_path)

    def run(trainer):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a")

    def sentence(function="fit"):
        with pytest.raises(OSError, match="No space") as caught:
            run(SimpleNamespace(checkpoint_callbacks=(object(), Keeps()), state=SimpleNamespace(fn=function)))
        return explain(caught.value)

    assert sentence().endswith(NOTHING)
    (tmp_path / "best.ckpt").write_text("")
    assert sentence().endswith(f"; earlier checkpoints are intact, resume with --ckpt_path {tmp_path / 'best.ckpt'}")
    (tmp_path / "last.ckpt").write_text("")
    os.utime(tmp_path / "last.ckpt", (0, 0))
    assert sentence().endswith(f" --ckpt_path {tmp_path / 'last.ckpt'}")
    for function in ("validate", "test", "predict", None):  # there is no training to go on with
        assert sentence(function) == "runs/a could not be written: No space left on device"


def in_worker(fail):
    """What a training raises of what failed in a process of its loader."""
    try:
        fail()
    except Exception:
        wrapped = ExceptionWrapper(sys.exc_info(), "in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except Exception as error:
        return explain(error)


def fails(error, note=None):
    def fail():
        if note is not None:
            error.add_note(note)
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "words", "kind"),
    [
        (fails(ValueError("of\ntwo lines")), "of two lines", "ValueError"),
        (fails(KeyError("a")), "'a'", "KeyError"),
        (fails(UnidentifiedImageError("no image: 'a.png'")), "no image: 'a.png'", "UnidentifiedImageError"),
        (fails(Unit("3.5: no unit")), "3.5: no unit", "Unit"),
        (lambda: json.loads("{"), "Expecting property name enclosed in double quotes: line 1", "JSONDecodeError"),
        (fails(AssertionError()), "", "AssertionError"),
        (fails(Unit()), "", "Unit"),
        (fails(AssertionError(), "of sample 7"), "of sample 7", "AssertionError"),
    ],
)
def test_what_was_said_in_a_loader_process_is_one_short_sentence(fail, words, kind):
    sentence = in_worker(fail)
    assert sentence.startswith(f"a batch could not be loaded: {words}")
    assert f"{kind} in " in sentence
    assert "Traceback" not in sentence
    assert "\n" not in sentence
    if not words:
        assert sentence.startswith(f"a batch could not be loaded: {kind} in test_runtime_errors.py, line ")


def test_nothing_is_left_where_it_was_looked(tmp_path):
    check_writable([tmp_path, tmp_path / "a" / "b", Path("relative")])
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "a" / "b"):
        with pytest.raises(
            ValueError, match=rf"^logs .* cannot be written to {folder} \({file} is a file, not a folder"
        ):
            check_writable([tmp_path, folder])


def test_threads_are_silent_about_what_is_explained(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    leave_to_main_thread()

    def fail(error):
        raise error

    others = [KeyError("a"), OSError(errno.ENOSPC, "No space left on device")]
    for error in others:
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    assert [failed.exc_value for failed in seen] == others[:1]
