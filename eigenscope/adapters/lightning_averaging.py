"""Lightning's callbacks that average weights, with what they leave out: late starts, checkpoints, an exact resume.

:func:`make_exact` gives the callbacks of a trainer a subclass with their own name. Where Lightning has no longer one of
the private names that this takes, they stay as they are, and stderr says so.
"""

from functools import cache
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from eigenscope.adapters import Library, MissingNameError, report_fallback
from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.adapters.lightning_swa import _ExactSWA, trained_weights
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
    callback.__class__ = _joined(mixin, cast(Any, type(callback)))


@cache
def _joined(mixin: type, kind: type) -> type:
    # a private name, as the parser looks through the subclasses of Callback
    return type(kind.__name__, (mixin, kind), {"__module__": __name__, "__qualname__": f"_Exact.{kind.__name__}"})


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
            self.trained = trained_weights(pl_module)
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
