"""Going on with a run: which checkpoint, whether the configuration is still its own, and in which folder."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eigenscope.checkpoints import CONFIGURATION, previous_checkpoint
from eigenscope.cli.resume.config_differences import Config, Difference, contradictions, differences
from eigenscope.cli.resume.schedule_length import without_stated_length

_FOLDER = "checkpoints"


def find_checkpoint(asked: str) -> Path:
    """The file that is meant by a path: itself, or of a run's folder ``checkpoints/last.ckpt``, else the newest there.

    Raises:
        ValueError: it is one of Lightning's words for what a run in this process has saved, or a folder without any.
    """
    if asked in ("best", "last", "hpc"):
        raise ValueError(
            f"ckpt_path must be a checkpoint or a run's folder, such as runs/demo/version_0, got {asked!r}: at the "
            "command line that word names no file"
        )
    path = Path(asked)
    if not path.is_dir():
        return path
    folder = path / _FOLDER if (path / _FOLDER).is_dir() else path
    last = folder / "last.ckpt"
    if last.exists() or previous_checkpoint(last).exists():
        return last
    found = [file for file in folder.glob("*.ckpt") if not file.stem.endswith(".previous")]
    if not found:
        raise ValueError(f"ckpt_path: there is no checkpoint in the folder {folder}")
    return max(found, key=lambda file: file.stat().st_mtime_ns)


def check_resume(
    checkpoint: Config, path: Path, now: Config, sections: Mapping[str, type], linked: Collection[str]
) -> str | None:
    """Refuses a configuration with which the run of a checkpoint would not go on as it began.

    Args:
        checkpoint: what the file holds.
        path: of the file.
        now: the resolved configuration.
        sections: the classes of parts of the configuration that name none.
        linked: arguments of the network that the data fills in, which no configuration states.

    Returns:
        What could not be compared, as a sentence.

    Raises:
        ValueError: the configuration contradicts the checkpoint's, each difference in a line; it asks for a warm start
            besides; or the checkpoint holds weights alone.
    """
    saved = without_stated_length(_configuration(checkpoint, path), now)
    warm = now.get("warm_start")
    began = all(now.get(key) == saved.get(key) for key in ("warm_start", "warm_start_map"))
    if warm is not None and (CONFIGURATION not in checkpoint or not began):
        raise ValueError(
            "ckpt_path and warm_start exclude each other: ckpt_path goes on with a run, warm_start begins one with the "
            f"weights of another; got {path} and {warm}"
        )
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"checkpoint {path} holds weights alone: no run goes on from it; begin one with --warm_start {path}"
        )
    if CONFIGURATION in checkpoint:
        found = contradictions(saved, now, sections)
        note = None
    else:
        saved_model, model = _models(saved, now, linked)
        found = differences(saved_model, model, "model") if saved else []
        note = f"checkpoint {path} holds no configuration: " + (
            "its model alone was compared" if saved else "nothing of it could be compared"
        )
    if found:
        raise ValueError(
            f"the configuration contradicts that of the checkpoint {path}:{_listed(found)}\n"
            f"A run goes on as it began. With another configuration begin a new one: --warm_start {path}"
        )
    return note


def check_network(checkpoint: Config, path: Path, now: Config, linked: Collection[str]) -> str | None:
    """Refuses to evaluate a checkpoint in another network than its own.

    Args:
        checkpoint: what the file holds.
        path: of the file.
        now: the resolved configuration.
        linked: arguments of the network that the data fills in, which no configuration states.

    Returns:
        What could not be compared, as a sentence.

    Raises:
        ValueError: the networks differ, each difference in a line.
    """
    saved = _configuration(checkpoint, path)
    if not saved:
        return f"checkpoint {path} holds no configuration: its network could not be compared"
    saved_net, net = ((model or {}).get("init_args", {}).get("net") for model in _models(saved, now, linked))
    found = differences(saved_net, net, "model.init_args.net")
    if found:
        raise ValueError(f"the network is not that of the checkpoint {path}:{_listed(found)}")
    return None


def continued_version(checkpoint: Path, logger: Any) -> str | None:
    """The version of its run's folder, if a logger is to write there: no version is asked for, or that one.

    Args:
        checkpoint: ``<save_dir>/<name>/<version>/checkpoints/*.ckpt``, or another place.
        logger: its configuration.
    """
    if isinstance(logger, list) and len(logger) == 1:
        logger = logger[0]
    if not isinstance(logger, Mapping) or not str(logger.get("class_path")).endswith(".TensorBoardLogger"):
        return None
    arguments = logger.get("init_args", {})
    folder = checkpoint.absolute().parent
    run = folder.parent
    root = Path(os.path.expandvars(arguments.get("save_dir") or "")).expanduser() / (arguments.get("name") or "")
    if folder.name != _FOLDER or root.resolve() != run.parent.resolve():
        return None
    version = arguments.get("version")
    asked = f"version_{version}" if isinstance(version, int) else version
    return run.name if asked in (None, run.name) else None


def _configuration(checkpoint: Config, path: Path) -> Config:
    """The resolved configuration in a checkpoint; of one without, what its hyperparameters say of the model."""
    for key in ("state_dict", "loops", "pytorch-lightning_version"):
        if key not in checkpoint:
            raise ValueError(f"checkpoint {path} has no {key}: it is not one of a training")
    if CONFIGURATION in checkpoint:
        configuration: Config = checkpoint[CONFIGURATION]
        return configuration
    given = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key != "_instantiator"}
    if "_class_path" not in given:
        return {}
    return {"model": {"class_path": given.pop("_class_path"), "init_args": given}}


def _models(saved: Config, now: Config, linked: Collection[str]) -> tuple[Any, Any]:
    """The models of both, without what the data fills into the network."""
    return _unlinked(saved.get("model"), linked), _unlinked(now.get("model"), linked)


def _unlinked(model: Any, linked: Collection[str]) -> Any:
    net = (model or {}).get("init_args", {}).get("net")
    if not isinstance(net, Mapping) or "init_args" not in net:
        return model
    kept = {key: value for key, value in net["init_args"].items() if key not in linked}
    return {**model, "init_args": {**model["init_args"], "net": {**net, "init_args": kept}}}


def _listed(found: list[Difference]) -> str:
    return "".join(f"\n  {difference}" for difference in found)
