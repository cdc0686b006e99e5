"""Run provenance: the resolved configuration and the data fingerprint, in run folder, checkpoints and metadata."""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from eigenscope.callbacks.reporting.run_metadata import RunMetadataCallback, data_fingerprint
from eigenscope.checkpoints import CONFIGURATION, DATA, SAVED_AT


class RunProvenance(SaveConfigCallback):
    """Saves the resolved configuration and the data fingerprint in every checkpoint, and the former beside the logs.

    The run metadata gets it too, with the requested precision if that was replaced. With the configuration a
    checkpoint keeps the data's fingerprint: a resumed run with other data, as at another ``root``, says so.
    """

    def __init__(self, *args: Any, continues: bool = False, asked_precision: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.continues = continues
        self.asked_precision = asked_precision
        self._data: dict[str, str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves it, unless Lightning would put it into the working directory for want of a logger."""
        if self.continues and trainer.log_dir is not None:  # on every rank: Lightning broadcasts it
            there = (Path(trainer.log_dir) / self.config_filename).exists()
            self.already_saved = trainer.strategy.broadcast(there)
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)
        for card in trainer.callbacks if trainer.is_global_zero and stage == "fit" else []:  # type: ignore[attr-defined]
            if isinstance(card, RunMetadataCallback):
                options = self._plain["trainer"]
                options = options | {"precision": self.asked_precision or options["precision"]}
                card.configuration = self._plain | {"trainer": options}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed run is compared with, and the time."""
        checkpoint[CONFIGURATION] = self._plain
        checkpoint[SAVED_AT] = time.time()
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
