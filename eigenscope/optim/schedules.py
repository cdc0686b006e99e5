"""Learning-rate schedules whose length may be left out: it is then the length of the run.

:class:`OneCycleLR`, :class:`CosineAnnealingLR`, :class:`LinearLR` and :class:`PolynomialLR` are torch's, bit for bit,
but for the argument that says how long they are. Left out, it is what :func:`run_length` says where they are made.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

_run_length: ContextVar[Callable[[], int | None] | None] = ContextVar("run_length", default=None)


@contextmanager
def run_length(length: Callable[[], int | None]) -> Iterator[None]:
    """Tells the schedules that are made inside how long the run is.

    Args:
        length: gives the number of steps that a schedule will take, None if nobody knows it; called only if asked for.
    """
    token = _run_length.set(length)
    try:
        yield
    finally:
        _run_length.reset(token)


class _FollowsRun(LRScheduler):
    """A schedule that knows whether its length was stated or is that of the run.

    The state is torch's, so either class loads the other's. If the length is that of the run, and the state was saved
    in a run of another length (one that is resumed with a larger ``max_epochs``), the schedule keeps the new length and
    continues with the rate that a run of the new length has at that step, which may differ from the last one used. A
    stated length is restored with the state, as in torch.

    Attributes:
        length_name: the attribute that holds the length, and the argument.
        length_arguments: all arguments that state the length.
        follows_run: the length was not stated.
        resumed_from: the length in the state that was loaded, if it was another; else None.
    """

    length_name: ClassVar[str]
    length_arguments: ClassVar[tuple[str, ...]]
    follows_run: bool
    resumed_from: int | None = None

    def _length(self, stated: int | None) -> int:
        self.follows_run = stated is None
        name = type(self).__name__
        if stated is not None:
            if stated < 1:  # torch divides by it, or keeps the first rate for ever
                raise ValueError(f"lr_scheduler {name} must have {self.length_name} of at least 1, got {stated}")
            return stated
        ask, owner = _run_length.get(), f"lr_scheduler {name} needs {self.length_name}"
        if ask is None:
            raise ValueError(f"{owner}, or to be made within eigenscope.optim.run_length(...), which tells it")
        length = ask()
        if length is None:
            raise ValueError(
                f"{owner}, because nobody knows how long the run is: "
                "set trainer.max_epochs or trainer.max_steps, which it follows, or state it"
            )
        return max(1, length)  # a run of no steps takes none of its schedule

    def state_dict(self) -> dict[str, Any]:
        """The state, as torch's schedule of that name would give it."""
        own = ("follows_run", "resumed_from")
        return {name: value for name, value in super().state_dict().items() if name not in own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state; of one of another length, if this one is the run's, only how far it had come.

        The optimizer's state must have been restored before, as Lightning does.
        """
        length, saved = getattr(self, self.length_name), state_dict[self.length_name]
        if not self.follows_run or saved == length:
            super().load_state_dict(state_dict)
            return
        self.resumed_from = saved
        self.base_lrs = state_dict["base_lrs"]
        _jump(self, min(state_dict["last_epoch"], length))


class OneCycleLR(_FollowsRun, lr_scheduler.OneCycleLR):
    """torch's OneCycleLR: up to ``max_lr`` and down to almost nothing, over the run or over as many steps as stated.

    Args:
        optimizer: whose learning rates are set.
        max_lr: the peak.
        total_steps: the length; None: ``epochs`` times ``steps_per_epoch``, or without these that of the run.
        epochs: the length in epochs.
        steps_per_epoch: steps in an epoch.
        pct_start: the fraction of the length that goes up.
        anneal_strategy: ``cos`` or ``linear``.
        **others: see torch's.

    Raises:
        ValueError: no length is stated and none is known, or an argument is out of range.
    """

    length_name = "total_steps"
    length_arguments = ("total_steps", "epochs", "steps_per_epoch")

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        **others: Any,
    ) -> None:
        if epochs is None and steps_per_epoch is None:
            total_steps = self._length(total_steps)
            if self.follows_run and pct_start * total_steps == 1:  # torch would divide by the 0 steps that go up
                pct_start *= 1 - 1e-9
        else:
            self.follows_run = False
        super().__init__(optimizer, max_lr, total_steps, epochs, steps_per_epoch, pct_start, anneal_strategy, **others)


class CosineAnnealingLR(_FollowsRun, lr_scheduler.CosineAnnealingLR):
    """torch's CosineAnnealingLR: down to ``eta_min`` along half a cosine, over the run or over ``T_max``.

    Args:
        optimizer: whose learning rates are set.
        T_max: the length; None: that of the run.
        eta_min: the last rate.
        last_epoch: see torch's.

    Raises:
        ValueError: no length is stated and none is known.
    """

    length_name = "T_max"
    length_arguments = ("T_max",)

    def __init__(
        self, optimizer: Optimizer, T_max: int | None = None, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        super().__init__(optimizer, self._length(T_max), eta_min, last_epoch)


class LinearLR(_FollowsRun, lr_scheduler.LinearLR):
    """torch's LinearLR: the rate times a factor that moves in a straight line, over the run or over ``total_iters``.

    Args:
        optimizer: whose learning rates are set.
        start_factor: the first factor.
        end_factor: the last factor.
        total_iters: the length; None: that of the run.
        last_epoch: see torch's.

    Raises:
        ValueError: no length is stated and none is known, or a factor is out of range.
    """

    length_name = "total_iters"
    length_arguments = ("total_iters",)

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        length = self._length(total_iters)
        super().__init__(optimizer, start_factor, end_factor, length, last_epoch)


class PolynomialLR(_FollowsRun, lr_scheduler.PolynomialLR):
    """torch's PolynomialLR: down to 0 as a power of what is left, over the run or over ``total_iters``.

    Args:
        optimizer: whose learning rates are set.
        total_iters: the length; None: that of the run.
        power: of the fraction that is left.
        last_epoch: see torch's.

    Raises:
        ValueError: no length is stated and none is known.
    """

    length_name = "total_iters"
    length_arguments = ("total_iters",)

    def __init__(
        self, optimizer: Optimizer, total_iters: int | None = None, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        super().__init__(optimizer, self._length(total_iters), power, last_epoch)


#: torch's schedules of fixed length, the name of that length, and the classes here that may be without it.
SCHEDULES: dict[type[LRScheduler], type[_FollowsRun]] = {
    lr_scheduler.OneCycleLR: OneCycleLR,
    lr_scheduler.CosineAnnealingLR: CosineAnnealingLR,
    lr_scheduler.LinearLR: LinearLR,
    lr_scheduler.PolynomialLR: PolynomialLR,
}


def length_mismatch(scheduler: Any, length: Callable[[], int | None], unit: str) -> str | None:
    """What to say of a schedule whose stated length is not that of the run.

    Silent are schedules that follow the run, that are periodic by design (CosineAnnealingWarmRestarts, CyclicLR,
    StepLR), or that only warm up and then keep the rate.

    Args:
        scheduler: as made, before any step.
        length: gives the steps that it will take, None if nobody knows; called only for a schedule of fixed length.
        unit: what these are, ``epoch`` or ``step``.

    Returns:
        One sentence, None if there is nothing to say.

    Raises:
        ValueError: the schedule cannot be stepped to the end of the run (it has ``total_steps``, and fewer).
    """
    own = next((mine for theirs, mine in SCHEDULES.items() if isinstance(scheduler, theirs)), None)
    name = own.length_name if own is not None else "total_steps"
    stated = getattr(scheduler, name, None)
    if stated is None or getattr(scheduler, "follows_run", False):
        return None
    steps, kind = length(), type(scheduler).__name__
    if name == "total_steps" and (steps is None or stated < steps):  # a step past its end raises, which is late
        taken = "nobody knows how many the run takes" if steps is None else f"the run takes {steps}"
        raise ValueError(
            f"lr_scheduler {kind} has {stated} steps, but {taken} (lr_interval is {unit!r}): make it as long as the run"
        )
    if own is None or steps is None or steps == stated:
        return None
    begin, end, last = (_rate(scheduler, step) for step in (0, stated, steps))
    peak = max(begin, end, *(group.get("max_lr", 0.0) for group in scheduler.optimizer.param_groups))
    share = f"{last / peak:.3g} of the peak"
    if stated > steps:
        what = f"but the run ends after {steps}: the last learning rate will be {share}"
    elif issubclass(own, CosineAnnealingLR):
        what = f"but the run takes {steps}: the learning rate comes back up, and the last one will be {share}"
    elif end < 0.01 * peak:
        what = f"but the run takes {steps}: from then on the learning rate is {share}"
    else:
        return None
    left_out = ", ".join(own.length_arguments)
    advice = f"leave {left_out} out to follow the run"
    if not isinstance(scheduler, _FollowsRun):
        advice = f"eigenscope.optim.{own.__name__} without {left_out} follows the run"
    return f"lr_scheduler {kind} spans {stated} {unit}s {what}; {advice}"


def _rate(scheduler: Any, step: int) -> float:
    """The largest learning rate after so many steps, found on a copy without parameters."""
    groups = scheduler.optimizer.param_groups
    kept = [{name: value for name, value in group.items() if name not in ("params", "param_names")} for group in groups]
    probe = copy.copy(scheduler)
    probe.optimizer = torch.optim.SGD(
        [{**group, "lr": float(group["lr"]), "params": [nn.Parameter(torch.zeros(()))]} for group in kept]
    )
    _jump(probe, step)
    return max(float(rate) for rate in probe.get_last_lr())


def _jump(scheduler: LRScheduler, step: int) -> None:
    """Sets the learning rates to those after so many steps, by torch's closed form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one had better step there, which takes long
        scheduler.step(step)
