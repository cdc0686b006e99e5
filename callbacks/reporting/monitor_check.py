"""Monitored metrics that nobody logs: found by the validation before training, not after the first epoch."""

import inspect
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from types import CodeType, FunctionType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.results import MonitoredMetric

_VALIDATION = "val"


class MonitorCheck(Callback):
    """Refuses a run that monitors a validation metric which its module does not log, as soon as that is known.

    It looks at ``monitor`` of every callback and of the learning-rate schedule. The validation before training (the
    sanity check) tells what is logged. A name that some code may log later, for it leaves the sanity check out, is
    waited for; after the first validation of the training, what is missing is said once, with the nearest name.

    Raises:
        ValueError: after the sanity check, a metric is monitored that nothing logs.
    """

    affects_training = False

    def __init__(self) -> None:
        self._is_said = False

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses names that cannot come any more."""
        known = sorted(trainer.callback_metrics)
        parts = [pl_module, *(callback for callback in callbacks_of(trainer) if not _is_of(callback, "lightning"))]
        for who, name in _monitored(trainer):
            if not known or name in known or not name.startswith(_VALIDATION):
                continue
            if not any(_may_log(part, name) for part in parts):
                raise ValueError(_sentence(who, name, known))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what is still missing."""
        if trainer.sanity_checking or self._is_said or trainer.state.fn != "fit":
            return
        self._is_said = True
        known = sorted(trainer.callback_metrics)
        for who, name in _monitored(trainer):
            if name.startswith(_VALIDATION) and name not in known and trainer.is_global_zero:
                print(f"warning: {_sentence(who, name, known)}", file=sys.stderr, flush=True)


def _monitored(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Which class monitors which metric."""
    parts: list[Any] = [*callbacks_of(trainer)]
    for part in parts:
        monitor = getattr(part, "monitor", None)
        if monitor == MonitoredMetric():
            continue  # of a callback that then takes another metric, and says so
        name = getattr(monitor, "name", monitor)
        if isinstance(name, str):
            yield type(part).__name__, name
    for schedule in trainer.lr_scheduler_configs:
        if schedule.reduce_on_plateau and schedule.monitor:
            yield type(schedule.scheduler).__name__, schedule.monitor


def _sentence(who: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    end = f"did you mean {near[0]}?" if near else f"validation logs {', '.join(known)}"
    return f"{who} monitors {name}, which nothing has logged; {end}"


def _may_log(part: object, name: str) -> bool:
    """Whether a module or a callback looks as if it logged a metric outside the sanity check alone."""
    if _is_of(part, "eigenscope"):  # which says the whole name, or its beginning, in the code that logs it
        texts = [text for code in _codes(type(part)) for text in code.co_consts if isinstance(text, str)]
        return any(len(text) > len(_VALIDATION) + 1 and name.startswith(text) for text in texts)
    if isinstance(part, LightningModule):
        return any("sanity_checking" in code.co_names for code in _codes(type(part)))
    return any(hook.startswith("on_") and hook in vars(kind) for kind in _own_classes(type(part)) for hook in dir(kind))


def _codes(kind: type) -> Iterator[CodeType]:
    for base in _own_classes(kind):
        for value in vars(base).values():
            function = inspect.unwrap(value) if callable(value) else None
            if isinstance(function, FunctionType):
                yield function.__code__


def _own_classes(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if not base.__module__.startswith(("lightning.", "torch.", "builtins"))]


def _is_of(part: object, package: str) -> bool:
    return type(part).__module__.partition(".")[0] == package
