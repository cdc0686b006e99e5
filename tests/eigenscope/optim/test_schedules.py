"""Schedules that follow the run: torch's, bit for bit, with a length that somebody tells."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from eigenscope.optim import CosineAnnealingLR, LinearLR, OneCycleLR, PolynomialLR, run_length
from eigenscope.optim.schedules import length_mismatch

SCHEDULES = {
    "one_cycle": (OneCycleLR, lr_scheduler.OneCycleLR, "total_steps", {"max_lr": 1e-3, "pct_start": 0.15}),
    "cosine": (CosineAnnealingLR, lr_scheduler.CosineAnnealingLR, "T_max", {"eta_min": 1e-6}),
    "linear": (LinearLR, lr_scheduler.LinearLR, "total_iters", {"start_factor": 1.0, "end_factor": 0.0}),
    "polynomial": (PolynomialLR, lr_scheduler.PolynomialLR, "total_iters", {"power": 2.0}),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)


def following(kind, steps, **arguments):
    with run_length(lambda: steps):
        return kind(optimizer(), **arguments)


def steps_of(schedule, count):
    """The learning rates and first moments' factors over some steps."""
    seen = []
    for _ in range(count):
        group = schedule.optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0]))
        schedule.optimizer.step()
        schedule.step()
    return seen


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 7, 496])
def test_a_derived_length_is_the_stated_one_bit_for_bit(name, steps):
    own, theirs, length, arguments = SCHEDULES[name]
    expected = theirs(optimizer(), **{length: steps}, **arguments)
    derived, stated = following(own, steps, **arguments), following(own, 3, **{length: steps}, **arguments)
    assert (derived.follows_run, stated.follows_run) == (True, False)
    rates = steps_of(expected, steps)
    assert steps_of(derived, steps) == rates == steps_of(stated, steps)
    assert derived.state_dict() == expected.state_dict() == stated.state_dict()


def test_epochs_and_steps_per_epoch_state_a_length():
    schedule = following(OneCycleLR, 3, max_lr=1e-3, epochs=4, steps_per_epoch=5)
    assert (schedule.total_steps, schedule.follows_run) == (20, False)


@pytest.mark.parametrize(("pct_start", "steps"), [(0.05, 20), (0.5, 2)])
def test_a_rise_of_no_steps_begins_at_the_peak(pct_start, steps):
    with pytest.raises(ZeroDivisionError):
        lr_scheduler.OneCycleLR(optimizer(), 1e-3, total_steps=steps, pct_start=pct_start)
    schedule = following(OneCycleLR, steps, max_lr=1e-3, pct_start=pct_start)
    rates = [rate for rate, _ in steps_of(schedule, steps)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates == sorted(rates, reverse=True)


@every_schedule
def test_nobody_knows_the_length(name):
    own, _, length, arguments = SCHEDULES[name]
    with pytest.raises(ValueError, match=rf"{own.__name__} needs {length}, or to be made within .*run_length"):
        own(optimizer(), **arguments)
    with pytest.raises(ValueError, match=rf"{own.__name__} needs {length}, because nobody knows how long the run is"):
        following(own, None, **arguments)
    following(own, None, **{"total_steps" if own is OneCycleLR else length: 3}, **arguments)


@every_schedule
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_alike(name, again):
    own, _, _, arguments = SCHEDULES[name]
    schedule = following(own, 9, **arguments)
    steps_of(schedule, 4)
    other = again(schedule)
    assert (other.follows_run, other.state_dict()) == (True, schedule.state_dict())
    assert steps_of(other, 5) == steps_of(schedule, 5)


def resumed(schedule, other):
    other.optimizer.load_state_dict(schedule.optimizer.state_dict())
    other.load_state_dict(copy.deepcopy(schedule.state_dict()))
    return other


@every_schedule
def test_a_state_of_the_same_length_is_resumed_bit_for_bit_be_it_torchs_or_not(name):
    own, theirs, length, arguments = SCHEDULES[name]
    whole = steps_of(following(own, 9, **arguments), 9)
    for first in (partial(following, own, 9), lambda **a: theirs(optimizer(), **{length: 9}, **a)):
        begun = first(**arguments)
        assert steps_of(begun, 4) == whole[:4]
        other = resumed(begun, following(own, 9, **arguments))
        assert other.resumed_from is None
        assert steps_of(other, 5) == whole[4:]


@every_schedule
def test_a_longer_run_continues_at_the_rate_that_it_would_have_had(name):
    own, theirs, length, arguments = SCHEDULES[name]
    whole = steps_of(theirs(optimizer(), **{length: 12}, **arguments), 12)
    begun = following(own, 6, **arguments)
    steps_of(begun, 6)  # at whose end the rate is next to nothing
    other = resumed(begun, following(own, 12, **arguments))
    assert (other.resumed_from, getattr(other, length)) == (6, 12)
    assert torch.allclose(torch.tensor(steps_of(other, 6)), torch.tensor(whole[6:]), rtol=1e-6, atol=1e-12)
    kept = resumed(begun, own(optimizer(), **{length: 12}, **arguments))  # as torch does with a stated one
    assert (kept.resumed_from, getattr(kept, length)) == (None, 6)


@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        (
            partial(lr_scheduler.CosineAnnealingLR, T_max=100),
            4,
            "lr_scheduler CosineAnnealingLR spans 100 epochs but the run ends after 4: the last learning rate will be "
            "0.996 of the peak; eigenscope.optim.CosineAnnealingLR without T_max follows the run",
        ),
        (
            partial(CosineAnnealingLR, T_max=4),
            6,
            "lr_scheduler CosineAnnealingLR spans 4 epochs but the run takes 6: the learning rate comes back up, and "
            "the last one will be 0.5 of the peak; leave T_max out to follow the run",
        ),
        (
            partial(OneCycleLR, max_lr=1.0, epochs=10, steps_per_epoch=10),
            65,
            "lr_scheduler OneCycleLR spans 100 epochs but the run ends after 65: the last learning rate will be 0.478 "
            "of the peak; leave total_steps, epochs, steps_per_epoch out to follow the run",
        ),
        (
            lr_scheduler.PolynomialLR,
            8,
            "lr_scheduler PolynomialLR spans 5 epochs but the run takes 8: from then on the learning rate is 0 of the "
            "peak; eigenscope.optim.PolynomialLR without total_iters follows the run",
        ),
        (
            partial(LinearLR, start_factor=0.5, total_iters=8),
            4,
            "lr_scheduler LinearLR spans 8 epochs but the run ends after 4: the last learning rate will be 0.75 of the "
            "peak; leave total_iters out to follow the run",
        ),
        (partial(LinearLR, start_factor=0.5, total_iters=4), 8, None),  # a warm-up
        (partial(lr_scheduler.CosineAnnealingLR, T_max=6), 6, None),
        (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2), 6, None),
        (partial(lr_scheduler.CyclicLR, base_lr=1e-4, max_lr=1e-3, step_size_up=2), 6, None),
        (partial(lr_scheduler.StepLR, step_size=100), 6, None),
        (partial(lr_scheduler.CosineAnnealingLR, T_max=6), None, None),
    ],
)
def test_a_stated_length_that_is_not_the_runs_is_one_sentence(schedule, steps, said):
    made = schedule(optimizer())
    before = copy.deepcopy((made.state_dict(), made.optimizer.param_groups[0]["lr"]))
    assert length_mismatch(made, lambda: steps, "epoch") == said
    assert (made.state_dict(), made.optimizer.param_groups[0]["lr"]) == before


@pytest.mark.parametrize(("steps", "taken"), [(8, "the run takes 8"), (None, "nobody knows how many the run takes")])
def test_a_schedule_that_cannot_reach_the_end_is_refused(steps, taken):
    made = lr_scheduler.OneCycleLR(optimizer(), 1.0, total_steps=2)
    with pytest.raises(ValueError, match=rf"OneCycleLR has 2 steps, but {taken} \(lr_interval is 'step'\)"):
        length_mismatch(made, lambda: steps, "step")
