"""Atomic checkpoints with one backup, loaded without executing code."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from eigenscope import renamed
from eigenscope.files import replace_atomically

#: Under what a checkpoint keeps the configuration of its run, the fingerprint of its data, when it was saved, and the
#: names of the classes of callbacks that affect its training; the folder of its run, and what its loggers have begun.
CONFIGURATION, DATA, SAVED_AT, AFFECTING = "configuration", "data", "saved_at", "affecting_callbacks"
RUN_FOLDER, LOGGERS = "run_folder", "loggers"
#: Under what a checkpoint keeps the weights that training goes on with, if those of ``state_dict`` are their averages.
TRAINED = "current_model_state"


def previous_checkpoint(path: Path) -> Path:
    """Where the checkpoint is kept that the one at ``path`` has replaced: ``last.previous.ckpt`` of ``last.ckpt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically; one of the same name is kept beside it as a backup.

    At every moment there is a whole checkpoint under one of the two names, whatever ends the process.

    Args:
        checkpoint: plain values and tensors.
        path: of the file; its folder is made.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before is as it was.
        ValueError: the checkpoint holds something that could not be read again without executing code.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        part.unlink()
    with replace_atomically(path) as aside:
        with aside.open("wb") as file:
            torch.save(checkpoint, file)
        unsafe = get_unsafe_globals_in_checkpoint(aside)
        if unsafe:
            raise ValueError(f"checkpoint {path} would hold more than plain values and tensors: {', '.join(unsafe)}")
        if path.exists() and _damage(path) is None:
            _keep(path)


def read_checkpoint(path: Path, map_location: str | torch.device | None = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without executing code; a damaged one is named, and the one before it read instead.

    Args:
        path: of the file.
        map_location: the device of the tensors.

    Raises:
        ValueError: there is no such file, neither it nor its predecessor can be read, or it holds more than plain
            values and tensors.
    """
    previous = previous_checkpoint(path)
    if not path.exists() and not previous.exists():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        return _read(path, map_location)
    except _DamagedError as damage:
        if not previous.exists():
            raise ValueError(f"checkpoint {path} {damage}, and there is none before it") from damage
        print(f"checkpoint {path} {damage}: resuming from the previous one, {previous}", flush=True)
        try:
            return _read(previous, map_location)
        except _DamagedError as too:
            raise ValueError(f"checkpoint {path} {damage}, and {previous} {too}") from too


def epochs_of(checkpoint: Mapping[str, Any]) -> int | None:
    """How many epochs the run of a checkpoint had finished; None if it does not say."""
    try:
        return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError, ValueError):
        return None


def _keep(path: Path) -> None:
    """Gives a checkpoint its second name; without hard links, the second for the first."""
    with replace_atomically(previous_checkpoint(path)) as other:
        other.unlink()
        try:
            os.link(path, other)
        except OSError:
            os.replace(path, other)


def averages_in(checkpoint: Mapping[str, Any]) -> str | None:
    """What to say of a checkpoint whose ``state_dict`` holds averages of the weights; None of any other."""
    begun = checkpoint.get("averaging_state", {}).get("n_averaged", 1)
    if TRAINED not in checkpoint or not begun:
        return None
    return f"The checkpoint's weights are their averages; those that training goes on with are under {TRAINED}."


class _DamagedError(Exception):
    """A file that is missing, cut short or altered."""


def _read(path: Path, map_location: str | torch.device | None) -> dict[str, Any]:
    if not path.exists():
        raise _DamagedError("is missing")
    damage = _damage(path)
    if damage is not None:
        raise _DamagedError(damage)
    try:
        content: Any = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} holds more than plain values and tensors, and reading it could execute code: "
            f"{', '.join(get_unsafe_globals_in_checkpoint(path)) or error}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise _DamagedError(f"is damaged or cut short ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} must hold a dictionary, got {type(content).__name__}")
    return renamed.checkpoint(content)


def _damage(path: Path) -> str | None:
    """What is wrong with a file's checksums, at which torch itself does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        with path.open("rb") as file:
            is_archive = file.read(2) in (b"PK", b"")
        return f"is damaged or cut short ({error})" if is_archive else "is not a zip archive, as torch writes"
    except OSError as error:
        return f"cannot be read ({error})"
    return None if damaged is None else f"is damaged: the checksum of {damaged} is wrong"
