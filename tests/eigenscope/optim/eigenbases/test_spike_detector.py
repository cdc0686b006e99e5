import math
import random
from statistics import median

import pytest

from eigenscope.optim.eigenbases.spike_detector import SpikeDetector


def found(norms, factor=10.0):
    detector = SpikeDetector(factor)
    return [number for number, norm in enumerate(norms) if detector.update(norm)]


def test_a_jump_needs_ten_before_it():
    assert found([1.0] * 9 + [100.0]) == []
    assert found([1.0] * 10 + [100.0]) == [10]
    assert found([1.0] * 10 + [10.0]) == []  # not above
    assert found([1.0] * 10 + [10.1]) == [10]


def test_a_spike_of_several_steps_is_one():
    assert found([1.0] * 20 + [50.0, 60.0, 70.0, 1.0, 50.0]) == [20, 24]


def test_it_gets_used_to_what_stays():
    assert found([1.0] * 50 + [50.0] * 200 + [400.0, 501.0]) == [50, 251]


def test_the_median_is_of_the_last_fifty():
    draw = random.Random(0)
    norms = [draw.lognormvariate(0, 2) for _ in range(400)]
    expected, inside = [], False
    for number, norm in enumerate(norms):
        before = norms[max(0, number - 50) : number]
        above = len(before) >= 10 and norm > 10 * median(before)
        if above and not inside:
            expected.append(number)
        inside = above
    assert found(norms) == expected
    assert len(expected) > 5


def test_what_is_not_finite_is_passed_over():
    assert found([1.0] * 10 + [math.nan, math.inf, 50.0]) == [12]
    assert found([math.nan] * 20 + [50.0]) == []


def test_without_a_factor_there_are_none():
    assert found([1.0] * 20 + [1e9], None) == []


@pytest.mark.parametrize("stop", range(8, 24))
def test_state_goes_on(stop):
    norms = [1.0] * 12 + [50.0, 60.0, 1.0, 50.0] + [1.0] * 8
    first = SpikeDetector()
    begun = [first.update(norm) for norm in norms[:stop]]
    second = SpikeDetector()
    second.load_state_dict(first.state_dict())
    assert [number for number, spike in enumerate(begun + [second.update(n) for n in norms[stop:]]) if spike] == [
        12,
        15,
    ]


@pytest.mark.parametrize("factor", [1.0, 0.5, math.nan])
def test_the_factor_is_checked(factor):
    with pytest.raises(ValueError, match="spike_factor must be above 1 or None"):
        SpikeDetector(factor)
