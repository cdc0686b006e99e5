"""Lightning's ``StochasticWeightAveraging`` with what it leaves out: resume within an epoch, replaced weights."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim.swa_utils import SWALR

from eigenscope.adapters.lightning_checkpoints import checkpoint_in_memory
from eigenscope.adapters.lightning_names import is_within_epoch
from eigenscope.checkpoints import TRAINED


def trained_weights(pl_module: LightningModule) -> dict[str, Tensor]:
    """Copies of a module's weights, which averages are about to replace."""
    return {name: value.detach().clone() for name, value in pl_module.state_dict().items()}


class _ExactSWA(StochasticWeightAveraging):
    """``StochasticWeightAveraging`` that resumes within an epoch, and keeps the weights that its average replaces.

    What was never averaged replaces nothing; Lightning would put the initial weights in place.
    """

    names = (
        *("_average_model", "_scheduler_state", "_initialized", "_init_n_averaged", "_swa_scheduler", "_swa_lrs"),
        *("_swa_epoch_start", "_annealing_epochs", "_annealing_strategy", "_device"),
        "_model_contains_batch_norm",
    )
    key: str
    trained: dict[str, Tensor] | None = None
    before: dict[str, Any] | None = None
    _asked: float | int = 0
    _saved: Mapping[str, Any] | None = None
    _runs = False

    @property
    def state_key(self) -> str:
        """Where its state is kept, as before."""
        return self.key

    def forget(self, stage: str) -> None:
        """Begins anew, in ``setup``."""
        self.trained, self.before, self._saved, self._runs = None, None, None, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what was asked for, which Lightning overwrites by the epoch that it is."""
        self._asked = self._swa_epoch_start
        super().on_fit_start(trainer, pl_module)
        if self._model_contains_batch_norm and self.swa_start > self.swa_end:  # no average, no pass for it
            trainer.fit_loop.max_epochs = self._max_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues the average of a checkpoint.

        Raises:
            ValueError: it began, or did not begin, where this run would not have begun it.
        """
        if self._saved is not None:
            self._check_start(trainer)
        if self._scheduler_state is not None and not self._initialized:
            self._continue(trainer, pl_module)
        self._runs = True
        super().on_train_start(trainer, pl_module)

    def _check_start(self, trainer: Trainer) -> None:
        assert self._saved is not None
        name, now = type(self).__name__, int(self._swa_epoch_start)
        begun = self._saved.get("swa_epoch_start")
        asked = f"swa_epoch_start={self._asked}"
        if isinstance(self._asked, float):
            asked += f" of max_epochs={self._max_epochs} is epoch {now}"
        passed = trainer.current_epoch + is_within_epoch(trainer)
        if begun is not None and max(begun - 1, 0) != self.swa_start:
            raise ValueError(
                f"{name} began to average in epoch {begun} of the run that is resumed, but {asked}: to go on as "
                f"that run would have, set swa_epoch_start={begun} and permit it with --resume_allow "
                f"trainer.callbacks.{name}.init_args.swa_epoch_start"
            )
        if begun is None and self._scheduler_state is None and passed > self.swa_start:
            raise ValueError(
                f"{name} cannot begin to average in the past: {asked}, but the checkpoint has come to epoch {passed}"
            )

    def _continue(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As Lightning does at the start of the next epoch, with the rates that the optimizer has come to."""
        assert self._average_model is not None
        assert self._scheduler_state is not None
        self._initialized = True
        self._average_model = self._average_model.to(self._device or pl_module.device)
        self.n_averaged = torch.tensor(self._init_n_averaged, dtype=torch.long, device=pl_module.device)
        groups = trainer.optimizers[0].param_groups
        if isinstance(self._swa_lrs, float):
            self._swa_lrs = [self._swa_lrs] * len(groups)
        rates = [{key: group[key] for key in ("lr", "initial_lr")} for group in groups]
        last_epoch = cast(int, trainer.max_epochs) if self._annealing_strategy == "cos" else -1
        scheduler = SWALR(
            trainer.optimizers[0],
            swa_lr=cast(Any, self._swa_lrs),
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,
            last_epoch=last_epoch,
        )
        own = scheduler.state_dict()
        kept = {key: own[key] for key in own if "anneal" in key}  # arguments
        scheduler.load_state_dict(self._scheduler_state | kept)
        if self._saved is not None and last_epoch != -1:  # a count from max_epochs on, which may be larger now
            scheduler.last_epoch += self._max_epochs - self._saved.get("max_epochs", self._max_epochs)
        for group, rate in zip(groups, rates, strict=True):
            group.update(rate)
        self._swa_scheduler = scheduler
        trainer.lr_scheduler_configs[:] = [LRSchedulerConfig(scheduler)]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the checkpoint of the end of training before the pass for batch norms."""
        if trainer.current_epoch == self.swa_end + 1 and self.n_averaged:
            self.before = _as_if_ended(trainer)
        super().on_train_epoch_start(trainer, pl_module)

    def transfer_weights(self, src_pl_module: LightningModule, dst_pl_module: LightningModule) -> None:  # type: ignore[override]
        """Keeps the weights that the average replaces."""
        if self.n_averaged:
            self.trained = trained_weights(dst_pl_module)
            super().transfer_weights(src_pl_module, dst_pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so if there was no average to put in place."""
        super().on_train_end(trainer, pl_module)
        if self.trained is None:
            why = "ended before its last epoch" if self.n_averaged else f"ended before epoch {self._swa_epoch_start}"
            pl_module.print(f"{type(self).__name__} leaves the weights as they are: the run {why}.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average in place in a run that was at its end when it was resumed."""
        ended = not self._runs and self._init_n_averaged and trainer.current_epoch == self._max_epochs
        if ended and self._average_model is not None:
            super().transfer_weights(self._average_model, pl_module)
        super().on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, with the epoch in which averaging began."""
        begun = self._swa_epoch_start if self._initialized else None
        return super().state_dict() | {"swa_epoch_start": begun, "max_epochs": getattr(self, "_max_epochs", None)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it, and keeps it until the fit is under way."""
        super().load_state_dict(state_dict)
        self._saved = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the trained weights once they are replaced."""
        if self.trained is not None:
            checkpoint[TRAINED] = self.trained
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


def _as_if_ended(trainer: Trainer) -> dict[str, Any] | None:
    """The checkpoint of a training that ends instead of the epoch that is about to start, on the CPU.

    None, and a note on stderr, where Lightning has no such name.
    """
    progress = trainer.fit_loop.epoch_progress
    counts = (progress.total, progress.current)
    for count in counts:
        count.ready -= 1
    found = checkpoint_in_memory(trainer)
    for count in counts:
        count.ready += 1
    return found
