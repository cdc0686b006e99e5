"""Run provenance: the resolved configuration and the data fingerprint, in run folder, checkpoints and metadata."""

import csv
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from eigenscope.adapters.lightning_averaging import is_averaging
from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.callbacks._output import run_folder
from eigenscope.callbacks.reporting.run_metadata import RunMetadataCallback, data_fingerprint
from eigenscope.checkpoints import AFFECTING, CONFIGURATION, DATA, LOGGERS, RUN_FOLDER, SAVED_AT


class RunProvenance(SaveConfigCallback):
    """Saves the resolved configuration in the run's folder, and it and the data fingerprint in every checkpoint.

    The run's card gets it too, with the precision that was asked for if that was replaced, and what was allowed to
    differ from the checkpoint. With the configuration a
    checkpoint keeps the data's fingerprint: a resumed run with other data, as at another ``root``, says so. It keeps
    the run's folder too, and how far its loggers have come, so that a resumed run continues there.
    """

    def __init__(
        self,
        *args: Any,
        asked_precision: str | None = None,
        allowed: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.asked_precision = asked_precision
        self.allowed = dict(allowed or {})
        self._data: dict[str, str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves it in the run's folder, on rank zero; a resumed run keeps that of its start."""
        folder = run_folder(trainer) if stage == "fit" else None
        if folder is not None and not (path := folder / self.config_filename).exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(path), skip_unset=False, skip_validation=True, multifile=self.multifile)
        for card in callbacks_of(trainer) if trainer.is_global_zero and stage == "fit" else []:
            if isinstance(card, RunMetadataCallback):
                options = self._plain["trainer"]
                options = options | {"precision": self.asked_precision or options["precision"]}
                card.configuration = self._plain | {"trainer": options}
                card.allowed = self.allowed

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed run is compared with, and the time."""
        checkpoint[CONFIGURATION] = self._plain
        checkpoint[SAVED_AT] = time.time()
        if (folder := run_folder(trainer)) is not None:
            checkpoint[RUN_FOLDER], checkpoint[LOGGERS] = str(folder), logger_states(trainer)
        kinds = map(type, callbacks_of(trainer))
        affecting = [kind for kind in kinds if getattr(kind, "affects_training", is_averaging(kind))]
        checkpoint[AFFECTING] = [kind.__name__ for kind in affecting]
        if self._data is None:
            self._data = data_fingerprint(trainer)
        checkpoint[DATA] = self._data

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compares the data; the folder that they are in is free to change, and says nothing of what is in it."""
        saved = checkpoint.get(DATA)
        if saved and trainer.state.fn == "fit":
            now = self._data = data_fingerprint(trainer)
            for name in saved.keys() & now.keys():
                if saved[name] != now[name]:
                    pl_module.print(
                        f"The {name} data are not those of the checkpoint: {saved[name]} there, {now[name]} now."
                    )

    @cached_property
    def _plain(self) -> Any:
        return yaml.safe_load(self.parser.dump(self.config, skip_unset=False, skip_validation=True))


def logger_states(trainer: Trainer) -> list[dict[str, Any]]:
    """What each logger has begun: its class and version or id; of one that writes files their root; of a CSV its rows.

    Left out is what a logger does not say: it is anybody's class.
    """
    states: list[dict[str, Any]] = []
    for logger in trainer.loggers:
        state: dict[str, Any] = {"class": type(logger).__name__}
        with suppress(Exception):
            version = logger.version
            if isinstance(logger, TensorBoardLogger | CSVLogger):
                state["root"] = str(logger.root_dir)
                version = version if isinstance(version, str) else f"version_{version}"
            state["version"] = version if isinstance(version, int | str) else None
        if isinstance(logger, CSVLogger):
            logger.save()
            with suppress(OSError), open(logger.experiment.metrics_file_path, newline="") as file:
                state["rows"] = sum(1 for _ in csv.DictReader(file))
        states.append(state)
    return states
