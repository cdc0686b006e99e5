import math

import pytest

from eigenscope.study import EpochResult, RunResult, compare_arms, comparison_table
from eigenscope.study.comparison import Difference


def result(*accuracies, name="arm", parameters=10, seconds=1.0):
    rows = tuple(EpochResult(i, 0.5, accuracy, 1.0, seconds) for i, accuracy in enumerate(accuracies, start=1))
    return RunResult(name, 0, parameters, "2026-01-01T00:00:00+00:00", "", rows)


def test_best_and_last():
    run = result(0.1, None, 0.4, 0.4, 0.3, None)
    assert run.best == (0.4, 3)
    assert run.last == 0.3


def test_a_run_without_validation_is_refused():
    with pytest.raises(ValueError, match="no validated epoch"):
        result(None, None)


def test_round_trip(tmp_path):
    run = result(0.1, None, 0.25)
    run.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json") == run


def test_paired_interval_against_the_textbook():
    # three differences of 1, 2 and 6 points: mean 3, deviation sqrt(7), t(0.975, 2) = 4.302653
    difference = Difference.paired([0.11, 0.22, 0.36], [0.10, 0.20, 0.30])
    assert difference.points == pytest.approx(3)
    assert difference.half_width == pytest.approx(4.302653 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    assert str(difference) == "+3.00 (-3.57 to +9.57)"
    assert Difference.paired([0.5], [0.25]) == Difference(25.0, None)


def test_pairing_takes_the_noise_of_the_seed_away():
    first = {seed: result(0.2 + seed / 10, parameters=10, seconds=1) for seed in range(3)}
    second = {seed: result(0.23 + seed / 10, parameters=30, seconds=3) for seed in range(3)}
    base, arm = compare_arms({"base": first, "arm": second})
    assert base.best_difference is None
    assert base.best == pytest.approx((30, 10))
    assert arm.best_difference.points == pytest.approx(3)
    assert arm.best_difference.half_width == pytest.approx(0, abs=1e-9)
    text = comparison_table([base, arm])
    assert "33.00 ± 10.00" in text
    assert "arm − base" in text
    assert "+20" in text
    assert "3.00×" in text


def test_one_seed_has_no_interval():
    text = comparison_table(compare_arms({"a": {0: result(0.5)}, "b": {0: result(0.25)}}))
    assert "-25.00 (one seed: no interval)" in text
    assert "±" not in text


@pytest.mark.parametrize("arms", [{}, {"a": {}}, {"a": {0: result(0.1)}, "b": {1: result(0.1)}}])
def test_arms_must_share_seeds(arms):
    with pytest.raises(ValueError, match="same seeds"):
        compare_arms(arms)
