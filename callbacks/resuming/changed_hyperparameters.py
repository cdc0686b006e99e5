"""Changed hyperparameters of optimizers and learning rate schedules in a run that resumes."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import ReduceLROnPlateau

#: What torch's schedules set, or keep, among the options of an optimizer's parameter groups.
_SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "momentum", "base_momentum", "max_momentum", "betas")


class ChangedHyperparameters(Callback):
    """Lets changed arguments of optimizers and schedules take effect, which the state of a checkpoint would undo.

    torch keeps the learning rate, the weight decay and other options of an optimizer beside its state, and a schedule's
    arguments beside its count of steps: restoring them restores the old values. Here the state to be restored gets the
    new ones. A changed schedule, or a schedule over a changed learning rate, continues where it would be if the run had
    begun with it: it takes as many steps from its start as the run has. ``ReduceLROnPlateau``, whose steps depend on
    the run, keeps what it has counted, and the learning rate it has come to unless that is changed.

    An option that the new values leave as it was, such as a learning rate that ``OneCycleLR`` replaces, is named.

    Args:
        options: changed arguments of optimizers, by their dotted keys.
        schedule: changed arguments of schedules, or of what they count, by their dotted keys.
    """

    def __init__(self, options: Mapping[str, str], schedule: Mapping[str, str]) -> None:
        self.options = dict(options)
        self.schedule = dict(schedule)
        self._checkpoint: dict[str, Any] = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the checkpoint, of which optimizers and schedules are restored last."""
        self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes new values into what is about to be restored, and names options that stay as they were.

        Raises:
            ValueError: the strategy restores optimizers itself.
        """
        checkpoint, self._checkpoint = self._checkpoint, {}
        if "optimizer_states" not in checkpoint:
            strategy = type(trainer.strategy).__name__
            raise ValueError(f"{', '.join(self.options | self.schedule)} cannot be changed under {strategy}")
        scheduled = bool(self.schedule) or "lr" in self.options.values()
        saved_schedules = dict(enumerate(checkpoint["lr_schedulers"]))
        counting = []  # optimizers whose schedule keeps what it has counted
        if scheduled:
            checkpoint["lr_schedulers"] = []
            for number, entry in enumerate(trainer.lr_scheduler_configs):
                saved = saved_schedules.get(number, {})
                if isinstance(entry.scheduler, ReduceLROnPlateau) and "num_bad_epochs" in saved:
                    counting.append(entry.scheduler.optimizer)
                    checkpoint["lr_schedulers"].append(self._plateau(entry.scheduler, saved))
                else:
                    checkpoint["lr_schedulers"].append(_replayed(entry, checkpoint))
        changed: set[str] = set()
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
            names = set(self.options.values()) | set(_SCHEDULED if scheduled and optimizer not in counting else ())
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
                changed |= _overwrite(saved, group, names)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        setters = [type(entry.scheduler).__name__ for entry in trainer.lr_scheduler_configs]
        for key, option in self.options.items():
            if option not in changed and any(option in group for group in groups):
                pl_module.print(f"{key} has no effect: {', '.join(setters) or 'the optimizer'} sets {option}.")

    def _plateau(self, scheduler: ReduceLROnPlateau, saved: dict[str, Any]) -> dict[str, Any]:
        """The saved state with changed arguments; ``min_lr`` is kept as ``min_lrs``."""
        own, arguments = scheduler.state_dict(), set(self.schedule.values())
        return saved | {name: own[name] for name in own if arguments & {name, name.removesuffix("s")}}


def _replayed(entry: LRSchedulerConfig, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a new schedule after as many steps as a checkpoint's run has taken; its optimizer's rates follow."""
    scheduler: Any = entry.scheduler
    if not isinstance(scheduler, ReduceLROnPlateau):
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        steps = checkpoint["global_step"] if entry.interval == "step" else epochs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that the optimizer has not stepped
            for _ in range(steps // entry.frequency):
                scheduler.step()
    state: dict[str, Any] = scheduler.state_dict()
    return state


def _overwrite(saved: dict[str, Any], group: Mapping[str, Any], names: set[str]) -> set[str]:
    """Replaces options of a saved parameter group by a new one's, and returns those that differed.

    Under a schedule a learning rate differs if the one that the schedule starts from does.
    """
    changed = set()
    for name in names:
        if saved.get(name) != group.get(name) and not (name == "lr" and "initial_lr" in group):
            changed.add("lr" if name == "initial_lr" else name)
        saved.pop(name, None)
        if name in group:
            saved[name] = copy.deepcopy(group[name])
    return changed
