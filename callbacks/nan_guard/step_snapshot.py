"""Snapshot of what a training step changes besides weights and optimizer, so that the step can be rolled back."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from eigenscope.adapters.lightning_names import logged_means, step_counters
from eigenscope.adapters.torchmetrics_names import restore_metric
from eigenscope.random_state import random_state, set_random_state


@dataclass(frozen=True)
class _MetricState:
    states: dict[str, Any]
    update_count: int
    has_reset: bool | None  # of the means that Lightning keeps of logged values


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
        self._owners = [(module, name) for module in modules for name, _ in module.named_buffers(recurse=False)]
        self._metrics = [module for module in modules if isinstance(module, Metric)]
        self._device = pl_module.device
        self._counters = step_counters(trainer)
        self._logged = logged_means(trainer)
        self.take()

    def take(self) -> None:
        """Keeps all of it as it is now."""
        copies: dict[int, Tensor] = {}  # metrics in a collection may share their states, and then keep sharing them
        self._buffers = [_copy(getattr(module, name), {}) for module, name in self._owners]
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
                    module.get_buffer(name).copy_(before)
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


def _state(metric: Metric, copies: dict[int, Tensor]) -> _MetricState | None:
    """None is that of a metric that has just been reset."""
    if not metric.update_called:
        return None
    states = {name: _copy(value, copies) for name, value in metric.metric_state.items()}
    return _MetricState(states, metric.update_count, getattr(metric, "has_reset", None))


def _copy(value: Any, copies: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]
    return list(value) if isinstance(value, list) else value


def _put_back(metric: Metric, state: _MetricState | None, copies: dict[int, Tensor]) -> None:
    if state is None:
        if metric.update_called:
            metric.reset()
        return
    restore_metric(metric, {name: _copy(value, copies) for name, value in state.states.items()}, state.update_count)
    if state.has_reset is not None:
        metric.has_reset = state.has_reset
