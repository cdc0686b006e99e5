"""Continuation of a run in its folder and in its loggers: the same version, the same id."""

import csv
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch import Callback

from eigenscope.adapters.lightning_names import ignore_existing_checkpoints, ignore_existing_logs
from eigenscope.callbacks.resuming.continued_csv import ContinuedCSV
from eigenscope.callbacks.resuming.continued_tensorboard import ContinuedBoard
from eigenscope.checkpoints import LOGGERS, RUN_FOLDER, SAVED_AT
from eigenscope.cli.errors.class_names import class_at
from eigenscope.cli.resume.config_differences import Config
from eigenscope.results.run_metadata import FILE_NAME

_FOLDER = "checkpoints"
_FILE_LOGGERS = ("TensorBoardLogger", "CSVLogger")
#: The argument by which a logger continues what it has begun; of any other logger ``version``, if it has that.
_IDENTITY = {"WandbLogger": "id", "MLFlowLogger": "run_id", "CometLogger": "experiment_key"}
_BY_DEFAULT = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"name": "lightning_logs", "version": None},
}


@dataclass
class ContinuedRun:
    """How a resumed run continues.

    Attributes:
        folder: of the run, if it continues there.
        callbacks: that continue what loggers have written.
    """

    folder: Path | None = None
    callbacks: list[Callback] = field(default_factory=list)


def run_of(path: Path, checkpoint: Config) -> Path | None:
    """The folder of the run that saved a checkpoint: the one that the file is in, else the one it names; None if gone.

    Args:
        path: of the file, ``<run>/checkpoints/*.ckpt`` or another place.
        checkpoint: what it holds.
    """
    beside = [path.parent.parent if len(path.parts) > 2 else path.absolute().parent.parent]
    named = [Path(checkpoint[RUN_FOLDER])] if RUN_FOLDER in checkpoint else []
    for folder in [*(beside if path.absolute().parent.name == _FOLDER else []), *named]:
        if any((folder / file).exists() for file in (FILE_NAME, "config.yaml")):
            return folder
    return None


def continue_run(config: Namespace, plain: Any, path: Path, checkpoint: Config) -> ContinuedRun:
    """Lets loggers write on in what they have begun, from the checkpoint's step on.

    Args:
        config: of ``fit``; arguments of its loggers are changed in place.
        plain: its ``trainer`` as plain values.
        path: of the checkpoint.
        checkpoint: what it holds.

    Returns:
        The run's folder and callbacks; nothing, if a logger is to write the logs elsewhere or the run is not known.
    """
    run = run_of(path, checkpoint)
    if run is None:
        return ContinuedRun()
    loggers = plain["logger"]
    if loggers is None or loggers is True:
        place = {"save_dir": plain["default_root_dir"] or os.getcwd()}
        loggers = [_BY_DEFAULT | {"init_args": _BY_DEFAULT["init_args"] | place}]  # type: ignore[operator]
    loggers = loggers if isinstance(loggers, list) else [loggers] if loggers else []
    begun = list(checkpoint.get(LOGGERS, ()))
    saved = [_taken(begun, _name(logger)) for logger in loggers]
    plans = [_arguments(logger, run, before) for logger, before in zip(loggers, saved, strict=True)]
    deciding = next((plan for logger, plan in zip(loggers, plans, strict=True) if _writes_files(logger)), {})
    if deciding is None:
        return ContinuedRun()
    continued, step = ContinuedRun(run), checkpoint["global_step"]
    tables: list[list[dict[str, str]]] = []
    for number, (logger, plan) in enumerate(zip(loggers, plans, strict=True)):
        if plan and _name(logger) == "TensorBoardLogger":
            plan["purge_step"] = step
        if _name(logger) == "CSVLogger":
            rows = saved[number].get("rows")
            tables.append(_rows(_root(logger) / plan["version"] / "metrics.csv", rows) if plan else [])
        _set(config.trainer, logger, number, plan or {})
    if any(_name(logger) == "TensorBoardLogger" for logger in loggers):
        continued.callbacks.append(ContinuedBoard(step, checkpoint.get(SAVED_AT)))
    if tables:
        continued.callbacks.append(ContinuedCSV(tables))
        ignore_existing_logs()
    ignore_existing_checkpoints()
    return continued


def _arguments(logger: Config, run: Path, saved: Config) -> dict[str, Any] | None:
    """The arguments by which a logger continues; None if it writes its files elsewhere."""
    given = logger.get("init_args") or {}
    if not _writes_files(logger):
        kind = class_at(str(logger.get("class_path")))
        takes = inspect.signature(kind).parameters if kind is not None else {}
        argument = _IDENTITY.get(_name(logger), "version" if "version" in takes else None)
        known = argument is not None and saved.get("version") is not None and given.get(argument) is None
        return {argument: saved["version"]} if known and argument is not None else {}
    root, version = _root(logger), given.get("version")
    asked = f"version_{version}" if isinstance(version, int) else version
    places = [(run.parent, run.name), *([(Path(saved["root"]), saved["version"])] if "root" in saved else [])]
    for parent, name in places:
        if root.resolve() == parent.resolve() and asked in (None, name):
            return {"version": name}
    return None


def _root(logger: Config) -> Path:
    arguments = logger.get("init_args") or {}
    return Path(os.path.expandvars(arguments.get("save_dir") or "")).expanduser() / (arguments.get("name") or "")


def _name(logger: Config) -> str:
    return str(logger.get("class_path")).rpartition(".")[2]


def _writes_files(logger: Config) -> bool:
    return _name(logger) in _FILE_LOGGERS


def _taken(begun: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The first logger of a class that the run had begun with, which is taken off the list."""
    found = next((each for each in begun if each["class"] == name), None)
    if found is None:
        return {}
    begun.remove(found)
    return found


def _set(trainer: Namespace, logger: Config, number: int, arguments: Mapping[str, Any]) -> None:
    if trainer.logger is None or trainer.logger is True:
        arguments = dict_to_namespace({**logger["init_args"], **arguments})
        trainer.logger = dict_to_namespace({"class_path": logger["class_path"], "init_args": arguments})
        return
    target = trainer.logger[number] if isinstance(trainer.logger, list) else trainer.logger
    for name, value in arguments.items():
        target.init_args[name] = value


def _rows(file: Path, count: int | None) -> list[dict[str, str]]:
    """The first rows of a table of metrics; all of them if nobody counted."""
    if not file.exists():
        return []
    with file.open(newline="") as table:
        return list(csv.DictReader(table))[:count]
