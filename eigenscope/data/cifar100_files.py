"""CIFAR-100 as published: found on disk or downloaded whole, verified, and read without executing code."""

import hashlib
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from filelock import FileLock
from torchvision.datasets import CIFAR100  # knows the address, the names and the MD5 sums
from tqdm import tqdm

from eigenscope.data.image_dataset import LabelledImages
from eigenscope.files import replace_atomically

_ANSWER_SECONDS = 5.0  # for a first answer of the server, its name looked up and all its addresses tried
_STALL_SECONDS = 30.0  # without a byte during the download
_FOLDER = "give images as files with --data.init_args.source folder --data.init_args.root FOLDER"


def cifar100_is_there(root: Path) -> bool:
    """Whether the files or their archive lie in ``root``, whole or not."""
    places = [root / CIFAR100.filename, *(root / CIFAR100.base_folder / name for name in _sums())]
    return any(map(os.path.exists, places))


def planned_download(root: Path) -> str:
    """What is missing, from where it will be read, and what can be given instead, in one line."""
    return f"{_absence(root)}: downloading {CIFAR100.url} to {root / CIFAR100.filename}; to do without, {_FOLDER}"


def check_cifar100(root: Path) -> None:
    """Finds out, in seconds and without changing anything, whether the images can be had.

    Raises:
        ValueError: what is there is damaged or is something else, or nothing is there and the server does not answer.
    """
    if not cifar100_is_there(root):
        _ask_server(root)
    elif _missing(root):
        _members(root / CIFAR100.filename)


def fetch_cifar100(root: Path) -> None:
    """Makes the files complete, from the archive, which is downloaded if it is missing too.

    What is written appears under its name when it is whole and verified. Nothing that is there is overwritten. Other
    processes with the same ``root`` wait.

    Raises:
        ValueError: what is there is damaged or is something else, the download fails, or ``root`` cannot be written.
    """
    if not _missing(root):
        return
    archive = root / CIFAR100.filename
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            missing = _missing(root)  # another process may have been faster
            if missing and not archive.exists():
                _download(root)
            members = _members(archive) if missing else {}
            for name in missing:
                path = root / CIFAR100.base_folder / name
                path.parent.mkdir(exist_ok=True)
                with replace_atomically(path) as aside:
                    aside.write_bytes(members[name])
    except OSError as error:
        raise ValueError(f"root {root} cannot be written ({error}); name a folder that can, or {_FOLDER}") from error


def read_cifar100(root: Path, split: Literal["train", "test"]) -> LabelledImages:
    """One split from its pickle file, verified before, and of which only arrays and plain values are made.

    Raises:
        ValueError: the file is missing, damaged or something else.
    """
    ((name, _),) = CIFAR100.train_list if split == "train" else CIFAR100.test_list
    path = root / CIFAR100.base_folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    _verify(path, content)
    try:
        entry = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        images = torch.from_numpy(np.asarray(entry["data"], dtype=np.uint8)).view(-1, 3, 32, 32)
        labels = torch.tensor(entry["fine_labels"], dtype=torch.int64)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(f"{path} does not hold images as CIFAR-100 does: {_reason(error)}") from error
    return LabelledImages(images, labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays, and nothing else that has a name."""

    modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    names = ("ndarray", "dtype", "_reconstruct", "_frombuffer")

    def find_class(self, module: str, name: str) -> Any:
        if (module in self.modules and name in self.names) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _sums() -> dict[str, str]:
    """The MD5 sums of the files, by their names."""
    return dict([*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], CIFAR100.meta["md5"])])


def _absence(root: Path) -> str:
    return f"CIFAR-100 is not in {root} (neither {CIFAR100.base_folder} nor {CIFAR100.filename})"


def _missing(root: Path) -> list[str]:
    """The files that are not there; those that are there are verified."""
    missing = []
    for name in _sums():
        path = root / CIFAR100.base_folder / name
        try:
            _verify(path, path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            missing.append(name)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    folder, archive = root / CIFAR100.base_folder, root / CIFAR100.filename
    if 0 < len(missing) < len(_sums()) and not archive.exists():
        lacking = " and ".join(missing)
        raise ValueError(
            f"{folder} is incomplete: {lacking} is missing, and so is the archive {archive}; put the archive there, or "
            f"remove the folder to download it again, or {_FOLDER}"
        )
    return missing


def _verify(path: Path, content: bytes) -> None:
    found, expected = _md5(content), _sums()[path.name]
    if found != expected:
        raise ValueError(
            f"{path} is damaged or not the published file (MD5 {found} instead of {expected}); remove it to have it "
            f"taken from the archive or downloaded again, or {_FOLDER}"
        )


def _members(archive: Path) -> dict[str, bytes]:
    """The files in an archive. One that was packed anew will do, if its files are the published ones.

    Raises:
        ValueError: it is damaged, or holds other files.
    """
    remedy = f"remove it to download it again, or {_FOLDER}"
    members = {}
    try:
        with tarfile.open(archive) as tar:
            for name in _sums():
                file = tar.extractfile(f"{CIFAR100.base_folder}/{name}")
                members[name] = file.read() if file is not None else b""
    except KeyError as error:
        with tarfile.open(archive) as tar:
            there = ", ".join(tar.getnames()[:4])
        lacking = f"it holds no {CIFAR100.base_folder}/{name}, but {there or 'nothing'}"
        raise ValueError(f"{archive} is not the published archive: {lacking}; {remedy}") from error
    except PermissionError as error:
        raise ValueError(f"{archive} cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged ones raise errors of tarfile, gzip, zlib and the system
        several = isinstance(error, tarfile.ReadError) and "\n" in str(error)  # one line for each compression it tried
        reason = "it is no tar archive" if several else _reason(error)
        raise ValueError(f"{archive} is damaged or cut short ({reason}); {remedy}") from error
    for name, content in members.items():
        if _md5(content) != _sums()[name]:
            raise ValueError(f"{archive} is not the published archive: its {name} has another MD5; {remedy}")
    return members


def _download(root: Path) -> None:
    archive = root / CIFAR100.filename
    for part in root.glob(f".{archive.name}.*"):  # of a process that was killed
        part.unlink()
    with replace_atomically(archive) as aside:
        digest = hashlib.md5(usedforsecurity=False)
        with aside.open("wb") as file:
            for chunk in _published(root):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != CIFAR100.tgz_md5:
            raise _unavailable(root, f"what came is not the archive: MD5 {digest.hexdigest()}, not {CIFAR100.tgz_md5}")


def _published(root: Path) -> Iterator[bytes]:
    """The archive in pieces, as the server sends them."""
    try:
        with _open(_STALL_SECONDS) as response:
            size, received = response.length, 0
            with tqdm(total=size, unit="B", unit_scale=True, desc=CIFAR100.filename, disable=None) as bar:
                while chunk := response.read(1 << 16):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
        if size is not None and received < size:
            raise HTTPException(f"it ended after {received:,} of {size:,} bytes")
    except (OSError, HTTPException) as error:
        raise _unavailable(root, _reason(error)) from error


def _ask_server(root: Path) -> None:
    """Opens the address and closes it; in a thread, since looking up a name cannot be bounded otherwise."""
    failures: list[Exception] = []

    def ask() -> None:
        try:
            _open(_STALL_SECONDS).close()
        except Exception as error:  # handed to the caller
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if thread.is_alive():
        raise _unavailable(root, f"no answer within {_ANSWER_SECONDS:g} s")
    if failures:
        raise _unavailable(root, _reason(failures[0])) from failures[0]


def _open(seconds: float) -> Any:
    try:
        return urlopen(Request(CIFAR100.url, headers={"User-Agent": "eigenscope"}), timeout=seconds)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise


def _unavailable(root: Path, reason: str) -> ValueError:
    return ValueError(
        f"{_absence(root)} and cannot be downloaded from {CIFAR100.url} ({reason}): put the archive there as "
        f"{root / CIFAR100.filename}, or {_FOLDER}"
    )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of urllib's, which may be an error itself or words
    if isinstance(reason, OSError):
        error = reason
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
