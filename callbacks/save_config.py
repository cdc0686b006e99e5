"""The configuration of a run, in its folder, its checkpoints and its record."""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.run_card import RunCard
from eigenscope.command.resume import CONFIGURATION, SAVED_AT


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in every checkpoint and beside the logs; there a run that goes on has it already.

    The run's card gets it too, with the precision that was asked for if that was replaced.
    """

    def __init__(self, *args: Any, continues: bool = False, asked_precision: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.continues = continues
        self.asked_precision = asked_precision

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves it, unless Lightning would put it into the working directory for want of a logger."""
        if self.continues and trainer.log_dir is not None:  # on every rank: Lightning broadcasts it
            there = (Path(trainer.log_dir) / self.config_filename).exists()
            self.already_saved = trainer.strategy.broadcast(there)
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)
        for card in trainer.callbacks if trainer.is_global_zero and stage == "fit" else []:  # type: ignore[attr-defined]
            if isinstance(card, RunCard):
                options = self._plain["trainer"]
                options = options | {"precision": self.asked_precision or options["precision"]}
                card.configuration = self._plain | {"trainer": options}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, for a resumed run to be compared with, and the time."""
        checkpoint[CONFIGURATION] = self._plain
        checkpoint[SAVED_AT] = time.time()

    @cached_property
    def _plain(self) -> Any:
        return yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
