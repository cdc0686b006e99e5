import math

import pytest

from eigenscope.results import EpochResult, MonitoredMetric, RunResult, compare_arms, comparison_table
from eigenscope.results.statistics import PairedDifference


def result(*accuracies, name="arm", parameters=10, seconds=1.0, **options):
    rows = tuple(
        EpochResult(i, {"train/acc": 0.5} | ({} if accuracy is None else {"val/acc": accuracy}), seconds)
        for i, accuracy in enumerate(accuracies, start=1)
    )
    return RunResult(name, 0, parameters, "2026-01-01T00:00:00+00:00", "", rows, **options)


def test_best_and_last():
    run = result(0.1, None, 0.4, 0.4, 0.3, None)
    assert run.best == (0.4, 3)
    assert run.last == 0.3


def test_lower_may_be_better():
    rows = tuple(EpochResult(i, {"val/mse": value}, 1.0) for i, value in enumerate((3.0, 1.0, 1.0, 2.0), start=1))
    run = RunResult("arm", 0, 1, "", "", rows, MonitoredMetric("val/mse", "min", percent=False), test={"test/mse": 1.5})
    assert run.best == (1.0, 2)
    assert run.test_score == 1.5
    (summary,) = compare_arms({"arm": {0: run}})
    header, _, row = comparison_table([summary]).splitlines()
    assert header.split()[1:9] == ["best", "val", "mse", "last", "val", "mse", "test", "mse"]
    assert row.split()[:4] == ["arm", "1", "2", "1.5"]


def test_a_run_without_its_score_is_refused():
    with pytest.raises(ValueError, match="run 'arm' has no epoch with 'val/acc'"):
        result(None, None)


@pytest.mark.parametrize("arguments", [{"name": ""}, {"mode": "best"}])
def test_bad_scores(arguments):
    with pytest.raises(ValueError, match=r"^monitor\."):
        MonitoredMetric(**arguments)


def test_paired_interval_against_the_textbook():
    # three differences of 1, 2 and 6: mean 3, deviation sqrt(7), t(0.975, 2) = 4.302653
    difference = PairedDifference.paired([11, 22, 36], [10, 20, 30])
    assert difference.mean == pytest.approx(3)
    assert difference.half_width == pytest.approx(4.302653 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    assert PairedDifference.paired([0.5], [0.25]) == PairedDifference(0.25, None)


def test_pairing_takes_the_noise_of_the_seed_away():
    first = {seed: result(0.2 + seed / 10, parameters=10, seconds=1) for seed in range(3)}
    second = {seed: result(0.23 + seed / 10, 0.1 * seed, parameters=30, seconds=3) for seed in range(3)}
    base, arm = compare_arms({"base": first, "arm": second})
    assert base.best.difference is None
    assert (base.best.mean, base.best.deviation) == pytest.approx((30, 10))
    assert arm.best.difference.mean == pytest.approx(3)
    assert arm.best.difference.half_width == pytest.approx(0, abs=1e-9)
    assert arm.last.difference.mean == pytest.approx(-20)
    text = comparison_table([base, arm])
    for words in ("33.00 ± 10.00", "arm − base", "+3.00 (+3.00 to +3.00)", "-20.00", "+20 ", "3.00×"):
        assert words in text
    assert "test" not in text


def test_one_seed_has_no_interval():
    text = comparison_table(compare_arms({"a": {0: result(0.5)}, "b": {0: result(0.25)}}))
    assert "-25.00 (one seed)" in text
    assert "±" not in text


def test_test_accuracies_are_shown_when_all_have_them():
    tested = {seed: result(0.5, test={"test/acc": 0.4 + seed / 10}) for seed in (0, 1)}
    assert compare_arms({"a": tested})[0].test.mean == pytest.approx(45)
    assert "test acc %" in comparison_table(compare_arms({"a": tested, "b": tested}))
    assert compare_arms({"a": tested, "b": {0: result(0.5), 1: result(0.5)}})[0].test is None


@pytest.mark.parametrize("arms", [{}, {"a": {}}, {"a": {0: result(0.1)}, "b": {1: result(0.1)}}])
def test_arms_must_share_seeds(arms):
    with pytest.raises(ValueError, match="same seeds"):
        compare_arms(arms)


def test_arms_must_share_their_score():
    other = result(0.1, score=MonitoredMetric(percent=False))
    with pytest.raises(ValueError, match="one score"):
        compare_arms({"a": {0: result(0.1)}, "b": {0: other}})
