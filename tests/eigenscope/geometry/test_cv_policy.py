import math

import pytest
import torch

from eigenscope.geometry import CVPolicy, Phase, SoftHand, expected_cv, proximity


def test_weight_follows_phases_and_ramps():
    policy = CVPolicy(phases=[Phase(20.0, epochs=2, ramp=1), Phase(10.0, epochs=3, ramp=2), Phase(4.0)])
    epochs = [0.0, 0.25, 1.0, 1.99, 2.0, 3.0, 4.0, 4.5, 5.0, 50.0]
    assert [policy.weight_at(epoch) for epoch in epochs] == [0, 5, 20, 20, 20, 15, 10, 10, 4, 4]


def test_after_the_last_phase_the_weight_stays():
    assert CVPolicy(phases=[Phase(3.0, epochs=1)]).weight_at(9.0) == 3.0
    assert CVPolicy().weight_at(0.0) == 0.0


def test_target():
    assert CVPolicy().target_in(16) == expected_cv(16)
    assert CVPolicy(target=0.3).target_in(16) == 0.3


def test_soft_hand_is_the_reported_formula():
    loss = torch.tensor(2.0, requires_grad=True)
    hand = SoftHand(boost=0.5, penalty=0.3, width=0.15)
    p = math.exp(-(0.1**2) / (2 * 0.15**2))
    assert proximity(0.3, 0.2) == pytest.approx(p)
    disciplined = hand.apply(loss, 0.3, 0.2)
    assert disciplined.item() == pytest.approx((1 + 0.5 * p) * 2 + 0.3 * (1 - p) * 0.1**2)
    assert torch.autograd.grad(disciplined, loss)[0].item() == pytest.approx(1 + 0.5 * p)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phase(-1.0), "weight of a phase must be finite and at least 0, got -1"),
        (lambda: Phase(1.0, epochs=0), "epochs of a phase must be above 0, got 0"),
        (lambda: Phase(1.0, epochs=1, ramp=2), "ramp of a phase must be between 0 and its epochs, got 2"),
        (lambda: Phase(float("nan")), "weight of a phase must be finite and at least 0, got nan"),
        (lambda: SoftHand(boost=-3.0), "boost of a soft hand must be finite and at least 0, got -3"),
        (lambda: SoftHand(width=0.0), "width of a soft hand must be finite and above 0, got 0"),
        (lambda: CVPolicy(target=0.0), "target must be 'auto' or finite and above 0, got 0"),
        (lambda: CVPolicy(phases=[Phase(1.0), Phase(2.0)]), "every phase but the last needs a number of epochs"),
    ],
)
def test_bad_policies(make, message):
    with pytest.raises(ValueError, match=message):
        make()
