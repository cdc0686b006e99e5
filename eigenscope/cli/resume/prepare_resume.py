"""Preparation of a resumed fit from a checkpoint and a configuration: options, callbacks, provenance."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer

from eigenscope.adapters.lightning_names import ignore_absent_callbacks
from eigenscope.callbacks.resuming.changed_hyperparameters import ChangedHyperparameters
from eigenscope.checkpoints import CONFIGURATION
from eigenscope.cli.resume.allowed_differences import changed_options, recorded
from eigenscope.cli.resume.compatibility import check_resume
from eigenscope.cli.resume.config_differences import Config
from eigenscope.cli.resume.continued_run import continue_run


@dataclass
class PreparedResume:
    """What a resumed fit needs.

    Attributes:
        lines: what to say, for people.
        folder: of the run, if it continues there.
        callbacks: further ones of the trainer.
        provenance: arguments of :class:`~eigenscope.callbacks.resuming.run_provenance.RunProvenance`.
    """

    lines: tuple[str, ...]
    folder: Path | None = None
    callbacks: list[Callback] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def prepare_resume(
    config: Namespace, checkpoint: dict[str, Any], path: Path, now: Config, linked: Collection[str]
) -> PreparedResume:
    """Compares the configurations; lets loggers write on in the folder of the run, from the checkpoint's step on.

    Args:
        config: of ``fit``, changed in place.
        checkpoint: what the file holds.
        path: of the file.
        now: ``config`` as plain values.
        linked: arguments of the network that the data fills in.

    Raises:
        ValueError: the configuration contradicts that of the checkpoint.
    """
    resumption = check_resume(checkpoint, path, now, {"trainer": Trainer}, linked)
    prepared = PreparedResume(resumption.lines)
    begun = checkpoint.get(CONFIGURATION, {})  # its checkpoints keep saying with which weights the run began
    config.warm_start, config.warm_start_map = begun.get("warm_start"), begun.get("warm_start_map")
    config.resume_allow = None  # is of this start alone, and in the run's record
    if resumption.allowed:
        prepared.provenance["allowed"] = recorded(resumption.allowed)
        options, schedule = changed_options(resumption.allowed, resumption.saved, now)
        if options or schedule:
            prepared.callbacks.append(ChangedHyperparameters(options, schedule))
    if CONFIGURATION in checkpoint:  # a line says already which callbacks differ
        ignore_absent_callbacks()
    continued = continue_run(config, now["trainer"], path, checkpoint)
    prepared.callbacks += continued.callbacks
    prepared.folder = continued.folder
    return prepared
