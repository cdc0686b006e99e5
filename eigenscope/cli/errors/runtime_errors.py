"""Runtime errors that the user can fix, one sentence each: what happened, to what, and what is left."""

import errno
import os
import re
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from eigenscope.adapters.lightning_names import BEFORE_TRAINING
from eigenscope.cli.resume.compatibility import find_checkpoint

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EIO}
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
_IN_WORKER = re.compile(r"Caught (\S+) in DataLoader worker process \d+")
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([^.]+))?")


def explain(error: BaseException) -> str | None:
    """One sentence for a fault that is not the program's: a full or forbidden disk, a loader process that failed.

    An error often hides another, as when the logger cannot be closed either because the disk is full: the sentence is
    of the first in the chain of causes and contexts that is known here.

    Args:
        error: as it left the training, with its traceback, from which paths are read that the error does not name.

    Returns:
        The sentence, with the checkpoint that a training can resume from; None for any other error.
    """
    chain = list(_chain(error))
    for known in (_worker_error, _dead_worker, _unwritable, _full):
        for each in reversed(chain):
            sentence = known(each)
            if sentence is not None:
                return "; ".join([sentence, *_what_is_left(chain)])
    sentence = explain_logger(error)
    return None if sentence is None else "; ".join([sentence, *_what_is_left(chain)])


def explain_logger(error: BaseException) -> str | None:
    """One sentence for what a logger raised, as one that needs a key, a server or another store; None for any other.

    Args:
        error: with its traceback.
    """
    for each in _chain(error):
        for frame, _ in reversed(list(traceback.walk_tb(each.__traceback__))):
            if isinstance(frame.f_locals.get("self"), Logger):
                *_, (last, line) = traceback.walk_tb(each.__traceback__)
                where = f"{type(each).__name__} in {Path(last.f_code.co_filename).name}, line {line}"
                words = " ".join(str(each).split())
                failed = f"the logger {type(frame.f_locals['self']).__name__} failed"
                return f"{failed}: {words} ({where})" if words else f"{failed}: {where}"
    return None


def check_writable(folders: Iterable[Path]) -> None:
    """Finds out before a training whether folders can be written, or made, without leaving anything in them.

    Raises:
        ValueError: one cannot; the message names it and the reason.
    """
    for folder in folders:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"\0")
        except OSError as error:
            reason = f"{there} is a file, not a folder" if there.is_file() else f"{there}: {error.strerror}"
            raise ValueError(
                f"logs and checkpoints cannot be written to {folder} ({reason}); name a folder that can "
                "with --trainer.logger.init_args.save_dir or --trainer.default_root_dir"
            ) from None  # whose words it has


def leave_to_main_thread() -> None:
    """Keeps other threads silent about what :func:`explain` knows: the main thread meets it too, with the run's path.

    TensorBoard writes from a thread of its own, whose error is raised again when it is next given something.
    """
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is None or explain(failed.exc_value) is None:
            before(failed)

    threading.excepthook = hook


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those before it, the latest first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__context__, each.__cause__]


def _unwritable(error: BaseException) -> str | None:
    """A file that could not be written."""
    if not isinstance(error, OSError) or error.errno not in _FULL | _FORBIDDEN:
        return None
    path = _path(error)
    verb = "written" if error.errno in _FULL else "used"
    return None if path is None else f"{path} could not be {verb}: {error.strerror}"


def _full(error: BaseException) -> str | None:
    """A disk that was full for a file that nobody names."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"a file could not be written: {error.strerror}"
    return None


def _dead_worker(error: BaseException) -> str | None:
    """A process of the loader that is gone."""
    found = _DEAD_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    pid, name = found.groups()
    how = "ended" if name is None else f"was killed by the signal '{name.strip()}'"
    causes = "memory runs out"
    if name is None or name.strip() == signal.strsignal(signal.SIGBUS):  # after which it may end by itself
        causes = "shared memory runs out, or a file it reads, such as an image cache, was cut short"
    fewer = "fewer processes (--data.init_args.num_workers) or a smaller batch need less memory"
    return f"a process of the data loader (pid {pid}) {how}, as when {causes}; {fewer}"


def _worker_error(error: BaseException) -> str | None:
    """What a data set said in a process of the loader, without the traceback that torch wraps around it."""
    found = _IN_WORKER.search(str(error))
    if found is None:
        return None
    kind = found.group(1)
    *_, (file, line) = re.findall(r'File "([^"]+)", line (\d+)', str(error)) or [("", "")]
    # a traceback names the module of an error that is not built in, and nothing but the error if that has no words
    heads = [*re.finditer(rf"^(?:[^\s:]+\.)?{re.escape(kind)}(?:: |$)", str(error), re.MULTILINE)]
    words = " ".join(str(error)[heads[-1].end() :].split()) if heads else ""
    where = f"{kind} in {Path(file).name}, line {line}"
    return f"a batch could not be loaded: {f'{words} ({where})' if words else where}"


def _path(error: BaseException) -> Path | None:
    """The file that an error is about: by its own word, or as the code that was writing called it."""
    named = getattr(error, "filename", None)
    if isinstance(named, str | bytes | Path):
        return Path(os.fsdecode(named))
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        local = frame.f_locals
        owner = local.get("self")
        owned = (getattr(owner, name, None) for name in ("path", "metrics_file_path"))  # the last of a CSVLogger
        for value in (local.get("path"), local.get("filename"), *owned):
            if isinstance(value, str | bytes | Path) and value:
                return Path(os.fsdecode(value))
    return None


def _what_is_left(chain: list[BaseException]) -> list[str]:
    """Which checkpoint a training can resume from; nothing of a run that trained nothing."""
    trainers = _fitting(chain)
    for folder in filter(Path.is_dir, _checkpoint_folders(trainers)):
        with suppress(ValueError):  # there is none
            return [f"earlier checkpoints are intact, resume with --ckpt_path {find_checkpoint(str(folder))}"]
    return ["no checkpoint had been saved before"] if trainers else []


def _fitting(chain: list[BaseException]) -> list[Any]:
    """The trainers that the errors passed through in a training, not in a validation or a test by itself."""
    frames = [frame for error in chain for frame, _ in traceback.walk_tb(error.__traceback__)]
    trainers = [frame.f_locals.get("trainer") for frame in frames]
    return [trainer for trainer in trainers if getattr(getattr(trainer, "state", None), "fn", None) == "fit"]


def _checkpoint_folders(trainers: list[Any]) -> list[Path]:
    """Where a run keeps its checkpoints."""
    callbacks = [callback for trainer in trainers for callback in getattr(trainer, "checkpoint_callbacks", [])]
    return list(dict.fromkeys(Path(c.dirpath) for c in callbacks if getattr(c, "dirpath", None)))


def own_error(error: BaseException) -> BaseException:
    """What a class raised when it was given its arguments, which jsonargparse wraps once per level of nesting.

    Args:
        error: as it left jsonargparse.
    """
    while _is_from_jsonargparse(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_from_setup(error: BaseException) -> bool:
    """Whether it was raised before the first step, while Lightning had all parts of the run looked over.

    Args:
        error: with its traceback.
    """
    return not BEFORE_TRAINING.isdisjoint(frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))


def add_step(error: BaseException) -> None:
    """Adds to a traceback in which step the code failed, if a trainer was running it.

    Args:
        error: with its traceback; it gets a note.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    trainers = (frame.f_locals.get("trainer") for frame in frames)
    trainer = next((each for each in trainers if getattr(each, "fit_loop", None) is not None), None)
    if trainer is None:
        return
    names = [frame.f_code.co_name for frame in frames]
    where = next((name for name in reversed(names) if name in _STEPS), "setup")
    at = f"epoch {trainer.current_epoch} (from 0), after {trainer.global_step} steps of the optimizer"
    error.add_note(f"It failed in {where}, {at}")


def _is_from_jsonargparse(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("jsonargparse")
