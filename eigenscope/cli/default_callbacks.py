"""Callbacks that every run of the command line has, unless the configuration names another or leaves one out."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ThroughputMonitor
from lightning.pytorch.utilities import rank_zero_only

from eigenscope import callbacks

Optional = Literal["EpochTable", "ParameterRouting", "ResumeCheckpoint", "Scoreboard", "TensorBoardLayout"]

_NEED_LOGGER = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)


def default_callbacks() -> list[Callback]:
    """All of them; the first decides the run's folder."""
    return [
        callbacks.RunFolder(),
        callbacks.ParameterRouting(),
        callbacks.RunMetadataCallback(),
        callbacks.TensorBoardLayout(),
        callbacks.ExactResume(),
        callbacks.EpochTable(),
        callbacks.Scoreboard(),
        callbacks.ParameterSummary(),
        callbacks.MonitorCheck(),
        callbacks.ResumeCheckpoint(),
    ]


def wanted(
    defaults: Sequence[Callback], given: Sequence[Callback], without: Collection[str], trainer: Mapping[str, Any]
) -> list[Callback]:
    """Those that a run is to have besides the given ones.

    Args:
        defaults: to choose from.
        given: of the configuration; a default gives way to one of its class or of a subclass of it.
        without: names of classes.
        trainer: options of the trainer, of which ``enable_checkpointing`` and ``enable_model_summary`` are heeded.
    """
    off = {
        callbacks.ResumeCheckpoint: trainer.get("enable_checkpointing") is False,
        callbacks.ParameterSummary: trainer.get("enable_model_summary") is False
        or any(isinstance(each, ModelSummary) for each in given),
    }
    return [
        default
        for default in defaults
        if not any(isinstance(each, type(default)) for each in given)
        and type(default).__name__ not in without
        and not off.get(type(default), False)
    ]


def usable(given: Sequence[Callback], has_logger: bool) -> list[Callback]:
    """The given callbacks; without a logger those that do not need one, and the others are named on stderr."""
    if has_logger:
        return list(given)
    idle = [each for each in given if isinstance(each, _NEED_LOGGER)]
    if idle:
        names = ", ".join(type(each).__name__ for each in idle)
        rank_zero_only(print)(f"{names}: left out, for there is no logger to log to.", file=sys.stderr, flush=True)
    return [each for each in given if each not in idle]
