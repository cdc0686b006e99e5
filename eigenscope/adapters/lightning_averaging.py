"""Lightning's callbacks that average weights, with what they leave out: late starts, checkpoints, an exact resume.

:func:`make_exact` gives the callbacks of a trainer a subclass with their own name. Where Lightning has no longer one of
the private names that this takes, they stay as they are, and stderr says so.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim.swa_utils import SWALR, AveragedModel

from eigenscope.adapters import Library, MissingNameError, report_fallback
from eigenscope.adapters.lightning_checkpoints import checkpoint_in_memory
from eigenscope.adapters.lightning_names import callbacks_of, is_within_epoch
from eigenscope.checkpoints import TRAINED

_LIGHTNING = Library("lightning")


def is_averaging(kind: type) -> bool:
    """Whether a callback class averages weights, which takes part in training."""
    return issubclass(kind, WeightAveraging | StochasticWeightAveraging)


def make_exact(trainer: Trainer, stage: str) -> None:
    """Makes the averaging callback of a trainer exact, in its ``setup`` and before or after the callback's own.

    Args:
        trainer: whose callbacks are changed in place.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: there are several, each of which would replace the weights.
    """
    found = [callback for callback in callbacks_of(trainer) if is_averaging(type(callback))]
    if len(found) > 1:
        names = " and ".join(type(callback).__name__ for callback in found)
        raise ValueError(f"trainer.callbacks must have at most one that averages the weights, got {names}")
    for callback in found:
        mixin = _ExactAverage if isinstance(callback, WeightAveraging) else _ExactSWA
        if not isinstance(callback, mixin):
            try:
                for name in mixin.names:
                    _LIGHTNING.get(callback, name)
            except MissingNameError as missing:
                report_fallback("weight averaging is resumed as Lightning does it, not bit for bit", missing)
                continue
            _join(callback, mixin)
        cast(_ExactAverage | _ExactSWA, callback).forget(stage)


def checkpoint_before_averages(trainer: Trainer) -> dict[str, Any] | None:
    """The checkpoint that a run ends with if it has gone on to the pass over the data for batch norms; else None.

    The pass is no part of the training, and is repeated by a run that is resumed from it.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, _ExactSWA) and callback.before is not None:
            return callback.before
    return None


def has_replaced_weights(trainer: Trainer) -> bool:
    """Whether averages are in the place of the weights that were trained, as the training ends."""
    return any(getattr(each, "trained", None) is not None for each in callbacks_of(trainer) if is_averaging(type(each)))


def _join(callback: Callback, mixin: type) -> None:
    """Gives a callback the class that is the mixin before its own; where its state is kept stays the same."""
    cast(Any, callback).key = callback.state_key
    callback.__class__ = _joined(mixin, type(callback))


@cache
def _joined(mixin: type, kind: type) -> type:
    # a private name, as the parser looks through the subclasses of Callback
    return type(kind.__name__, (mixin, kind), {"__module__": __name__, "__qualname__": f"_Exact.{kind.__name__}"})


def _weights(pl_module: LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pl_module.state_dict().items()}


class _Averages(AveragedModel):
    """torch's, whose buffers that are no running statistics are those of the module: counts, indices, what is unset."""

    def update_parameters(self, model: torch.nn.Module) -> None:
        super().update_parameters(model)
        for own, current in zip(self.module.buffers(), model.buffers(), strict=True):
            if not own.is_floating_point():
                own.copy_(current)
            elif not own.isfinite().all():
                own.copy_(torch.where(own.isfinite(), own, current.to(own.device)))


class _ExactAverage(WeightAveraging):
    """``WeightAveraging`` that begins with the first update, validates as a whole, and keeps the trained weights.

    Until the first update there is no average: the module's weights are validated, saved and kept at the end, instead
    of the initial ones. The averages are in place until validation is over. At the end of training they replace the
    weights, which checkpoints keep beside them.
    """

    names = ("_average_model", "_swap_models", "_copy_average_to_current", "_latest_update_epoch")
    key: str
    trained: dict[str, Tensor] | None = None
    _swapped = False
    _runs = False

    @property
    def state_key(self) -> str:
        return self.key

    def forget(self, stage: str) -> None:
        self.trained, self._swapped, self._runs = None, False, False
        if stage != "fit":  # the average of an earlier fit is none of the weights that are evaluated
            self._average_model = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.__class__ = _Averages
        if any(getattr(saver, "save_weights_only", False) for saver in trainer.checkpoint_callbacks):
            name = type(self).__name__
            pl_module.print(f"save_weights_only saves the trained weights; validated are the averages of {name}.")
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._runs = True
        super().on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            super()._swap_models(pl_module)
            self._swapped = False
        super().on_validation_end(trainer, pl_module)

    def _swap_models(self, pl_module: LightningModule) -> None:
        """Lightning's, as validation starts; as its epoch ends, others still look at the averages."""
        if self._has_begun() and not self._swapped:
            super()._swap_models(pl_module)
            self._swapped = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._runs:  # a run that was at its end when it was resumed
            self._copy_average_to_current(pl_module)
        super().on_fit_end(trainer, pl_module)

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        if self._has_begun():
            self.trained = _weights(pl_module)
            super()._copy_average_to_current(pl_module)

    def _has_begun(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"latest_update_epoch": self._latest_update_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._latest_update_epoch = state_dict.get("latest_update_epoch", self._latest_update_epoch)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None:
            return
        weights = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._has_begun():
            checkpoint["state_dict"] = weights
        elif self._swapped:
            checkpoint["state_dict"], checkpoint[TRAINED] = weights, checkpoint["state_dict"]
        if self.trained is not None:
            checkpoint[TRAINED] = self.trained

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class _ExactSWA(StochasticWeightAveraging):
    """``StochasticWeightAveraging`` that resumes within an epoch, and keeps the weights that its average replaces.

    What was never averaged replaces nothing; Lightning would put the initial weights in place.
    """

    names = (
        *("_average_model", "_scheduler_state", "_initialized", "_init_n_averaged", "_swa_scheduler", "_swa_lrs"),
        *("_swa_epoch_start", "_annealing_epochs", "_annealing_strategy", "_device"),
    )
    key: str
    trained: dict[str, Tensor] | None = None
    before: dict[str, Any] | None = None
    _asked: float | int = 0
    _saved: Mapping[str, Any] | None = None
    _runs = False

    @property
    def state_key(self) -> str:
        return self.key

    def forget(self, stage: str) -> None:
        self.trained, self.before, self._saved, self._runs = None, None, None, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked = self._swa_epoch_start
        super().on_fit_start(trainer, pl_module)

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
        if trainer.current_epoch == self.swa_end + 1 and self.n_averaged:
            self.before = _as_if_ended(trainer)
        super().on_train_epoch_start(trainer, pl_module)

    def transfer_weights(self, src_pl_module: LightningModule, dst_pl_module: LightningModule) -> None:  # type: ignore[override]
        if self.n_averaged:
            self.trained = _weights(dst_pl_module)
            super().transfer_weights(src_pl_module, dst_pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.trained is None:
            why = "ended before its last epoch" if self.n_averaged else f"ended before epoch {self._swa_epoch_start}"
            pl_module.print(f"{type(self).__name__} leaves the weights as they are: the run {why}.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ended = not self._runs and self._init_n_averaged and trainer.current_epoch == self._max_epochs
        if ended and self._average_model is not None:  # a run that was at its end when it was resumed
            super().transfer_weights(self._average_model, pl_module)
        super().on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        begun = self._swa_epoch_start if self._initialized else None
        return super().state_dict() | {"swa_epoch_start": begun, "max_epochs": getattr(self, "_max_epochs", None)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._saved = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
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
