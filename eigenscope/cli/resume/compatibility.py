"""Resume compatibility: the checkpoint to resume from, and its configuration."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenscope.checkpoints import AFFECTING, CONFIGURATION, previous_checkpoint
from eigenscope.cli.resume.allowed_differences import allow
from eigenscope.cli.resume.config_differences import Config, Difference, callback_changes, contradictions, differences
from eigenscope.cli.resume.schedule_length import without_stated_length

_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Resumption:
    """How a configuration resumes the run of a checkpoint.

    Attributes:
        lines: what to say about it, for people.
        allowed: differences that ``--resume_allow`` permits.
        saved: the resolved configuration in the checkpoint, or what is known of it.
    """

    lines: tuple[str, ...]
    allowed: tuple[Difference, ...]
    saved: Config


def check_options(subcommand: str, config: Config) -> None:
    """Refuses options of resuming and of warm starts where they would do nothing.

    Raises:
        ValueError: one needs another that is not there, or another subcommand.
    """
    if config["warm_start"] is not None and subcommand != "fit" and config["ckpt_path"] is not None:
        raise ValueError(
            f"ckpt_path and warm_start exclude each other: both say which weights to {subcommand}; got "
            f"{config['ckpt_path']} and {config['warm_start']}"
        )
    if config["warm_start_map"] is not None and config["warm_start"] is None:
        raise ValueError("warm_start_map says where the parts of warm_start belong, of which there is none")
    if config["resume_allow"] is not None:
        if subcommand != "fit":
            raise ValueError(f"resume_allow is for fit, which may resume a run; {subcommand} trains nothing")
        if config["ckpt_path"] is None:
            raise ValueError("resume_allow names what may differ from the checkpoint of ckpt_path, which is not given")


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
) -> Resumption:
    """Refuses to resume a checkpoint with a configuration that contradicts its own.

    Args:
        checkpoint: what the file holds.
        path: of the file.
        now: the resolved configuration; the keys in its ``resume_allow`` may differ.
        sections: the classes of parts of the configuration that name none.
        linked: arguments of the network that the data fills in, which no configuration states.

    Raises:
        ValueError: the configuration contradicts the checkpoint's, each difference in a line; it asks for a warm start
            besides; the checkpoint holds weights alone; or a key of ``resume_allow`` is unknown or permits nothing
            that could take effect.
    """
    saved = without_stated_length(_configuration(checkpoint, path), now)
    warm = now.get("warm_start")
    began = all(now.get(key) == saved.get(key) for key in ("warm_start", "warm_start_map"))
    if warm is not None and (CONFIGURATION not in checkpoint or not began):
        raise ValueError(
            "ckpt_path and warm_start exclude each other: ckpt_path resumes a run, warm_start starts a new one with "
            f"the weights of another; got {path} and {warm}"
        )
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"checkpoint {path} holds weights alone: it cannot be resumed; start a new run with --warm_start {path}"
        )
    if CONFIGURATION in checkpoint:
        affecting = checkpoint.get(AFFECTING)
        found = contradictions(saved, now, sections, affecting)
        note = callback_changes(saved, now, affecting)
    else:
        saved_model, model = _models(saved, now, linked)
        found = differences(saved_model, model, "model") if saved else []
        note = f"checkpoint {path} holds no configuration: " + (
            "its model alone was compared" if saved else "nothing of it could be compared"
        )
    given = now.get("resume_allow") or []
    allowed, refused, said = allow(found, [given] if isinstance(given, str) else given, saved, now)
    if refused:
        raise ValueError(
            f"the configuration contradicts that of the checkpoint {path}:{_listed(refused)}\n"
            f"Resuming requires the original configuration. With another one start a new run, --warm_start {path}, or "
            "permit a difference on purpose with --resume_allow KEY"
        )
    return Resumption(tuple(line for line in (note, said) if line), tuple(allowed), saved)


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
