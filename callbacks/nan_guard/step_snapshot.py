"""Snapshot of what a training step changes besides weights and optimizer, so that the step can be rolled back."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from eigenscope.random_state import random_state, set_random_state


class StepSnapshot:
    """Snapshot of a module's buffers and metrics, Lightning's logged means, random states, and counts.

    Metrics that have not been updated since they were reset, as those of validation, cost nothing. The module's parts
    are looked up when this is made: a network has hundreds, and a step may be short.

    Args:
        trainer: of the fit under way.
        pl_module: the module.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        modules = list(pl_module.modules())
        self._owners = [(module, name) for module in modules for name in module._buffers]
        self._metrics = [module for module in modules if isinstance(module, Metric)]
        self._device = pl_module.device
        loop: Any = trainer.fit_loop.epoch_loop
        self._counters = (loop.batch_progress, loop.automatic_optimization.optim_progress)
        self._logged = trainer.fit_loop.epoch_loop._results  # Lightning has no public way to what it collects
        self.take()

    def take(self) -> None:
        """Keeps all of it as it is now."""
        copies: dict[int, Tensor] = {}  # metrics in a collection may share their states, and then keep sharing them
        self._buffers = [_copy(module._buffers[name], {}) for module, name in self._owners]
        self._states = [_state(metric, copies) for metric in self._metrics]
        self._means = {key: _state(mean, copies) for key, mean in self._logged.items()}
        self._streams = random_state(self._device)
        self._counts = [counter.state_dict() for counter in self._counters]

    def restore(self) -> None:
        """Puts buffers, metrics and means back."""
        copies: dict[int, Tensor] = {}  # the snapshot stays as it is when metrics are updated after it
        with torch.no_grad():
            for (module, name), before in zip(self._owners, self._buffers, strict=True):
                if before is not None:
                    cast(Tensor, module._buffers[name]).copy_(before)
        for key, mean in self._logged.items():
            _put_back(mean, self._means.get(key), copies)
        for metric, state in zip(self._metrics, self._states, strict=True):
            _put_back(metric, state, copies)

    def restore_streams(self) -> None:
        """Puts the random streams back."""
        set_random_state(self._streams, self._device)

    def restore_counts(self) -> None:
        """Puts the trainer's counts of batches and steps back."""
        for counter, counts in zip(self._counters, self._counts, strict=True):
            counter.load_state_dict(counts)


def _state(metric: Metric, copies: dict[int, Tensor]) -> dict[str, Any] | None:
    """None is that of a metric that has just been reset."""
    if not metric.update_called:
        return None
    names = (*metric.metric_state, "_update_count", *(("has_reset",) if hasattr(metric, "has_reset") else ()))
    return {name: _copy(getattr(metric, name), copies) for name in names}


def _copy(value: Any, copies: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]
    return list(value) if isinstance(value, list) else value


def _put_back(metric: Metric, state: dict[str, Any] | None, copies: dict[int, Tensor]) -> None:
    if state is None:
        if metric.update_called:
            metric.reset()
        return
    for name, value in state.items():
        setattr(metric, name, _copy(value, copies))
    metric._computed = None
