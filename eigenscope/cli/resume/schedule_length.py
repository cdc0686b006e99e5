"""Resuming with a learning-rate schedule that follows the run, where the checkpoint's run had stated its length."""

from collections.abc import Mapping
from typing import Any

from eigenscope.cli.errors.class_names import class_at
from eigenscope.optim.schedules import SCHEDULES


def without_stated_length(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a checkpoint as if its schedule had followed the run, if the schedule of ``now`` does.

    The schedules of runs of 0.4 are torch's own, with lengths that had to be stated; the configurations that they were
    started with now leave these to :mod:`eigenscope.optim.schedules`. It is the same schedule: that of the checkpoint
    continues if the run is as long as stated, and follows the new length otherwise. A length stated by ``now`` must be
    the checkpoint's.

    Args:
        saved: the resolved configuration in a checkpoint.
        now: the resolved configuration of the resumed run.
    """
    before, after = _schedule(saved), _schedule(now)
    own = class_at(after.get("class_path", ""))
    theirs = next((theirs for theirs, mine in SCHEDULES.items() if mine is own), None)
    arguments = after.get("init_args") or {}
    if theirs is None or any(arguments.get(name) is not None for name in SCHEDULES[theirs].length_arguments):
        return saved
    if class_at(before.get("class_path", "")) not in (theirs, own):
        return saved
    unstated = dict.fromkeys(SCHEDULES[theirs].length_arguments)
    schedule = {"class_path": after["class_path"], "init_args": {**(before.get("init_args") or {}), **unstated}}
    model = saved["model"]
    return {**saved, "model": {**model, "init_args": {**model["init_args"], "lr_scheduler": schedule}}}


def _schedule(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config.get("model") or {}
    schedule = (model.get("init_args") or {}).get("lr_scheduler")
    return schedule if isinstance(schedule, Mapping) else {}
