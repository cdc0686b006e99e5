import pytest
import torch

from eigenscope.optim.eigenbases.reference_snapshots import ReferenceSnapshots
from eigenscope.optim.eigenbases.rotation import eigenbasis
from eigenscope.optim.eigenbases.snapshots import EigenbasisSnapshot

SIDE = ("weight", "L")


def snapshot(step):
    return EigenbasisSnapshot(step, {SIDE: eigenbasis(torch.eye(3) * step, torch.eye(3))})


def run(keeper, steps):
    """What each measurement is compared with, by step, and how many snapshots were there at most."""
    seen, most = {}, 0
    for step in range(1, steps + 1):
        if keeper.measures_at(step):
            seen[step] = {reference: found.step for reference, found in keeper.at(step).items()}
        if keeper.needs(step):
            keeper.keep(snapshot(step))
        keeper.forget(step)
        most = max(most, len(keeper.state_dict()["lagged"]))
    return seen, most


@pytest.mark.parametrize(("every", "lags"), [(1, (1,)), (1, (4,)), (10, (1, 10)), (3, (7, 2)), (5, (13,))])
def test_lags_reach_back_as_far_as_they_say(every, lags):
    references = ["previous" if lag == 1 else f"lag:{lag}" for lag in lags]
    seen, most = run(ReferenceSnapshots(references, every), 60)
    assert list(seen) == list(range(every, 61, every))
    for step, found in seen.items():
        assert found == {reference: step - lag for reference, lag in zip(references, lags, strict=True) if step > lag}
    assert most <= sum(-(-lag // every) for lag in lags)


def test_spike_frames_are_what_was_frozen_last():
    keeper = ReferenceSnapshots(["post_spike", "previous", "pre_spike"], 1)
    assert keeper.at(5) == {}
    keeper.pre_spike, keeper.post_spike = snapshot(3), snapshot(4)
    keeper.keep(snapshot(4))
    assert [(reference, found.step) for reference, found in keeper.at(5).items()] == [
        ("post_spike", 4),
        ("previous", 4),
        ("pre_spike", 3),
    ]
    assert list(ReferenceSnapshots(["previous"], 1).at(5)) == []


def test_state_goes_on_and_leaves_out_what_is_not_watched():
    keeper = ReferenceSnapshots(["lag:2", "pre_spike"], 1)
    keeper.keep(snapshot(3))
    keeper.pre_spike = snapshot(1)
    other = ReferenceSnapshots(["lag:2", "pre_spike"], 1)
    other.load_state_dict(keeper.state_dict(), {SIDE: torch.device("cpu")})
    for reference, found in keeper.at(5).items():
        assert other.at(5)[reference].step == found.step
        for mine, theirs in zip(other.at(5)[reference].bases[SIDE], found.bases[SIDE], strict=True):
            assert torch.equal(mine, theirs)
    other.load_state_dict(keeper.state_dict(), {("another", "L"): torch.device("cpu")})
    assert other.at(5)["pre_spike"].bases == {}
