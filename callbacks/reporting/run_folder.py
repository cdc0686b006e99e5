"""The folder of a run, whatever its loggers: where its record, configuration and checkpoints are."""

import os
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from eigenscope.files import claim_version
from eigenscope.results.run_metadata import FILE_NAME

_CONFIGURATION = "config.yaml"


class RunFolder(Callback):
    """Decides a run's folder, which holds ``run.json``, ``config.yaml`` and ``checkpoints``.

    It is that of the first logger that writes to a local folder, as ``TensorBoardLogger`` and ``CSVLogger`` do. With
    any other logger (Weights & Biases, MLflow, one of one's own, a remote one) or none it is
    ``<root>/<name>/version_N``, with the next number that is free. A run that is resumed continues in the
    folder it has. Checkpoints of a ``ModelCheckpoint`` without ``dirpath`` go there too. Every run of the command line
    has this callback.

    Args:
        root: where runs without a local log folder are; None is ``runs`` in ``trainer.default_root_dir``.
        name: of the experiment in it; None is the name of the configuration file, else the class of the module.

    Attributes:
        continues: the folder of the run that is resumed; the command line sets it.
        path: the folder, the same on all ranks, once a fit has begun; None in a ``fast_dev_run``.
        experiment: the run's name, once a fit has begun.

    Raises:
        ValueError: in setup, if a logger was given the folder of an earlier run.
    """

    affects_training = False

    def __init__(self, root: str | None = None, name: str | None = None) -> None:
        self.root = root
        self.name = name
        self.continues: Path | None = None
        self.path: Path | None = None
        self.experiment = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides the folder on rank zero, and tells the others."""
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        if self.path is None:
            found: tuple[str, str, str] = ("", "", "")
            if trainer.is_global_zero:
                found = self._choose(trainer, self.name or type(pl_module).__name__)
            path, self.experiment, problem = trainer.strategy.broadcast(found)
            if problem:
                raise ValueError(problem)
            self.path = Path(path)
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint) and saver.dirpath is None:
                saver.dirpath = str(self.path / "checkpoints")

    def planned_root(self, trainer: Trainer) -> Path:
        """Where a run without a local log folder is going to be."""
        if self.root is not None:
            return Path(self.root)
        root = str(trainer.default_root_dir)
        return Path("runs") if is_remote(root) or Path(root) == Path.cwd() else Path(root) / "runs"

    def _choose(self, trainer: Trainer, name: str) -> tuple[str, str, str]:
        """The folder, the run's name, and what is wrong."""
        logger, folder = next(((each, at) for each in trainer.loggers if (at := _said(each)) is not None), (None, None))
        if logger is not None:
            name = str(logger.name or name)
        if self.continues is not None:
            path = self.continues
            if folder is not None and folder.absolute() == path.absolute():
                path = folder  # as the logger spells it
            elif path.absolute().is_relative_to(Path.cwd()):
                path = path.absolute().relative_to(Path.cwd())
            return str(path), name if logger is not None else path.parent.name, ""
        if folder is None:
            own = self.planned_root(trainer) / name.replace(os.sep, "_")
            return str(own / f"version_{claim_version(own)}"), name, ""
        if any((folder / file).exists() for file in (FILE_NAME, _CONFIGURATION)):
            problem = (
                f"the folder {folder} holds a run already: resume it with --ckpt_path {folder}, or give the logger"
            )
            return "", "", f"{problem} another version or name"
        return str(folder), name, ""


def is_remote(folder: str) -> bool:
    """Whether a folder is an address, such as ``s3://bucket/runs``."""
    return "://" in folder


def local_log_dir(logger: Logger) -> Path | None:
    """The local folder that a logger writes its logs to; None if it has none, or raises when it is asked."""
    try:
        folder = logger.log_dir
    except Exception:  # a logger is anybody's class, and may ask a server
        return None
    return Path(folder) if isinstance(folder, str | os.PathLike) and not is_remote(str(folder)) else None


def _said(logger: Logger) -> Path | None:
    """As :func:`local_log_dir`; says why a logger raises."""
    try:
        _ = logger.log_dir
    except Exception as error:
        words = " ".join([type(error).__name__, *str(error).split()])
        print(f"{type(logger).__name__} does not say where its logs are ({words}).", file=sys.stderr, flush=True)
    return local_log_dir(logger)
