"""Preparation of a resumed fit from a checkpoint and a configuration: options, callbacks, provenance."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer

from eigenscope.adapters.lightning_names import ignore_absent_callbacks, ignore_existing_checkpoints
from eigenscope.callbacks.resuming.changed_hyperparameters import ChangedHyperparameters
from eigenscope.callbacks.resuming.continued_tensorboard import ContinuedBoard
from eigenscope.checkpoints import CONFIGURATION, SAVED_AT
from eigenscope.cli.resume.allowed_differences import changed_options, recorded
from eigenscope.cli.resume.compatibility import check_resume, continued_version
from eigenscope.cli.resume.config_differences import Config


@dataclass
class PreparedResume:
    """What a resumed fit needs.

    Attributes:
        lines: what to say, for people.
        callbacks: further ones of the trainer.
        provenance: arguments of :class:`~eigenscope.callbacks.resuming.run_provenance.RunProvenance`.
    """

    lines: tuple[str, ...]
    callbacks: list[Callback] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def prepare_resume(
    config: Namespace, checkpoint: dict[str, Any], path: Path, now: Config, linked: Collection[str]
) -> PreparedResume:
    """Compares the configurations; lets the logger write on in the folder of the run, from the checkpoint's step on.

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
    version = continued_version(path, now["trainer"]["logger"])
    if version is not None:
        step = checkpoint["global_step"]
        logger = config.trainer.logger
        logger = logger[0] if isinstance(logger, list) else logger
        logger.init_args.version, logger.init_args.purge_step = version, step
        prepared.callbacks.append(ContinuedBoard(step, checkpoint.get(SAVED_AT)))
        prepared.provenance["continues"] = True
        ignore_existing_checkpoints()
    return prepared
