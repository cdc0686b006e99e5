"""Atomic file writes, and folders that one process alone gets."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, and renames it to ``path`` when the block ends without an error.

    Readers see the old file or the new one, never a part; an error leaves the old one and removes the part. An
    ``OSError`` that names no file, as of a full disk, names ``path``; so does one behind the ``RuntimeError`` that
    :func:`torch.save` makes of it, if it was given an open file.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # mkstemp makes it private to this user
        with aside.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:
        fault = error if isinstance(error, OSError) else error.__context__
        if not isinstance(fault, OSError):
            raise
        if fault.errno is not None and fault.filename in (None, name):  # a full disk names no file
            fault.filename = str(path)
        raise fault from error.__cause__
    finally:
        aside.unlink(missing_ok=True)


def claim_version(root: Path) -> int:
    """Makes the folder ``version_N`` below ``root``, N the next number, which no other process gets too; returns N."""
    root.mkdir(parents=True, exist_ok=True)
    numbers = [folder.name.removeprefix("version_") for folder in root.glob("version_*")]
    number = max((int(each) for each in numbers if each.isdigit()), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return number
        except FileExistsError:
            number += 1
