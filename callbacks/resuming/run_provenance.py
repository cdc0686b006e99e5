"""Run provenance: the resolved configuration and the data fingerprint, in run folder, checkpoints and metadata."""

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from eigenscope.adapters.lightning_averaging import is_averaging
from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.callbacks.reporting.run_metadata import RunMetadataCallback, data_fingerprint
from eigenscope.checkpoints import AFFECTING, CONFIGURATION, DATA, SAVED_AT


class RunProvenance(SaveConfigCallback):
    """Saves the resolved configuration and the data fingerprint in every checkpoint, and the former beside the logs.

    The run's card gets it too, with the precision that was asked for if that was replaced, and what was allowed to
    differ from the checkpoint. With the configuration a
    checkpoint keeps the data's fingerprint: a resumed run with other data, as at another ``root``, says so.
    """

    def __init__(
        self,
        *args: Any,
        continues: bool = False,
        asked_precision: str | None = None,
        allowed: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.continues = continues
        self.asked_precision = asked_precision
        self.allowed = dict(allowed or {})
        self._data: dict[str, str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves it, unless Lightning would put it into the working directory for want of a logger."""
        if self.continues and trainer.log_dir is not None:  # on every rank: Lightning broadcasts it
            there = (Path(trainer.log_dir) / self.config_filename).exists()
            self.already_saved = trainer.strategy.broadcast(there)
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)
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
        return yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
