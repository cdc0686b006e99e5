import math

import pytest
import torch
from spike_response import replay, spike_response, spiked

DECAY = 0.8


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.5, momentum=DECAY)


def gradients(steps=30, seed=0):
    return torch.randn(steps, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_updates_are_those_of_the_optimizer_per_unit_of_rate():
    given = gradients().double()
    expected, velocity = [], torch.zeros(3, 4).double()
    for gradient in given:
        velocity = DECAY * velocity + gradient
        expected.append(-velocity)
    torch.testing.assert_close(replay(momentum, given), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_adam_is_adam():
    given, rate = gradients().double(), 0.1
    updates = replay(lambda p: torch.optim.AdamW(p, lr=rate, betas=(0.9, 0.95), eps=0, weight_decay=0.5), given)
    steps = torch.arange(30).double()
    for t in range(30):
        first, second = (b ** (t - steps[: t + 1]) * (1 - b) / (1 - b ** (t + 1)) for b in (0.9, 0.95))
        mean = torch.einsum("t,tij->ij", first, given[: t + 1])
        square = torch.einsum("t,tij->ij", second, given[: t + 1].square())
        torch.testing.assert_close(updates[t], -mean / square.sqrt(), rtol=1e-10, atol=1e-12)


def test_an_update_is_exact_after_a_huge_one():
    given = spiked(gradients(), 5, 1e6)
    updates = replay(lambda p: torch.optim.SGD(p, lr=1.0), given)
    assert torch.equal(updates, -given)


def test_a_spike_scales_one_step_and_leaves_the_rest():
    given = gradients()
    kept = given.clone()
    assert torch.equal(spiked(given, 4, 100.0)[4], 100 * given[4])
    changed = (spiked(given, 4, 100.0) != given).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [4]
    assert torch.equal(given, kept)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_momentum_forgets_a_spike_as_its_decay_says(scale):
    given, step = torch.ones(100, 2, 2).double(), 20
    twin = replay(momentum, given)
    response = spike_response(replay(momentum, spiked(given, step, scale)), twin, step)

    def level(t):
        return (1 - DECAY ** (t + 1)) / (1 - DECAY)

    def excess(n):
        return (scale - 1) * DECAY**n

    recovery = next(n for n in range(80) if excess(n) <= 0.1 * level(step + n))
    assert response.size_recovery == recovery
    assert response.direction_recovery == 0  # all gradients point the same way
    assert response.before == pytest.approx((level(14) + level(15)) / 2)  # between the middle two of steps 10 to 19
    assert response.at_spike == pytest.approx(excess(0) + level(step))
    assert response.extreme == pytest.approx(excess(1) + level(step + 1))
    assert response.extreme_after == 1
    if scale == 1e4:  # the run may end too early
        short = step + recovery
        cut = spike_response(replay(momentum, spiked(given[:short], step, scale)), twin[:short], step)
        assert cut.size_recovery is None


def updates_along(*sizes_and_degrees):
    sizes, degrees = torch.tensor(sizes_and_degrees).double().unbind(1)
    angles = degrees.deg2rad()
    return (sizes[:, None] * torch.stack([angles.cos(), angles.sin()], 1))[:, None]


def test_size_and_direction_recover_by_themselves():
    twin = updates_along(*[(2.0, 10.0)] * 8)
    run = updates_along((2, 10), (2, 10), (9, 80), (0.5, 80), (2.1, 80), (1.7, 80), (1.9, 80), (2.1, 12))
    response = spike_response(run, twin, 2)
    assert response.size_recovery == 4  # steps 4 was near already, 5 was not
    assert response.direction_recovery == 5
    rms = 1 / math.sqrt(2)
    assert response.extreme == pytest.approx(0.5 * rms)  # a fourth counts for more than 1.1
    assert response.extreme_after == 1
    assert spike_response(run, twin, 2, tolerance=0.2).size_recovery == 2
    assert spike_response(run, twin, 2, cosine=0.3).direction_recovery == 0  # cos 70° is 0.34


def test_without_a_spike_there_is_nothing_to_recover_from():
    twin = replay(momentum, gradients())
    response = spike_response(twin, twin, 10)
    assert (response.size_recovery, response.direction_recovery) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike_step": 0}, r"spike_step must .* be in \[1, 4\], got 0"),
        ({"spike_step": 5}, r"be in \[1, 4\], got 5"),
        ({"tolerance": 0.0}, "tolerance must be in .* got 0.0"),
        ({"cosine": 1.0}, "cosine must be in .* got 1.0"),
        ({"twin": torch.ones(5, 2, 2)}, r"got \(6, 2, 2\) and \(5, 2, 2\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"updates": torch.ones(6, 2, 2), "twin": torch.ones(6, 2, 2), "spike_step": 2}
    with pytest.raises(ValueError, match=message):
        spike_response(**arguments | change)


def test_what_cannot_be_replayed_is_named():
    with pytest.raises(ValueError, match=r"gradients must be \(T, m, n\), got \(3, 4\)"):
        replay(momentum, torch.ones(3, 4))
    with pytest.raises(ValueError, match="learning rate above 0, got 0"):
        replay(lambda p: torch.optim.SGD(p, lr=0.0), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"step must be in \[0, 2\), the steps of the run, got 2"):
        spiked(torch.ones(2, 3, 4), 2, 10.0)
