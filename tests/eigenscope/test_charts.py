import random
import re

import pytest

from eigenscope.charts import Chart, dashboard, present, train_and_val


def test_a_chart_needs_tags_and_has_a_band_around_one_curve_only():
    with pytest.raises(ValueError, match="tags of chart 'loss' must name at least one scalar"):
        Chart("Training", "loss", ())
    with pytest.raises(ValueError, match=r"band of chart 'loss' goes with one tag, got 2: \('a', 'b'\)"):
        Chart("Training", "loss", ("a", "b"), band=("low", "high"))


def test_what_was_not_logged_is_left_out():
    charts = [
        train_and_val("loss", "loss"),
        train_and_val("accuracy", "acc"),
        Chart("Sector M", "CV", ("cv",), band=("low", "high")),
        Chart("Sector M", "half a band", ("cv",), band=("low", "far")),
        Chart("Sector M", "a band without its curve", ("far",), band=("low", "high")),
    ]
    assert present(charts, {"val/loss", "cv", "low", "high", "else"}) == [
        Chart("Training and validation", "loss", ("val/loss",)),
        Chart("Sector M", "CV", ("cv",), band=("low", "high")),
        Chart("Sector M", "half a band", ("cv",)),
    ]
    assert present(charts, ()) == []


def test_the_layout_has_expressions_for_curves_and_plain_tags_for_bands():
    charts = [train_and_val("loss", "loss"), Chart("Sector M", "CV", ("cv_M/x",), band=("cv_M/low", "cv_M/high"))]
    assert dashboard(charts) == {
        "Training and validation": {"loss": ("Multiline", ["^train/loss$", "^val/loss$"])},
        "Sector M": {"CV": ("Margin", ["cv_M/x", "cv_M/low", "cv_M/high"])},
    }
    assert dashboard(charts, "run-")["Sector M"]["CV"][1] == ["run-cv_M/x", "run-cv_M/low", "run-cv_M/high"]


def test_an_expression_matches_its_own_tag_alone():
    generator = random.Random(0)
    tags = {"".join(generator.choices("ab/._-+*$^()[]|?\\", k=generator.randint(1, 6))) for _ in range(300)}
    ((_, regexes),) = dashboard([Chart("a", "b", tuple(tags))])["a"].values()
    for tag, regex in zip(dict.fromkeys(tags), regexes, strict=True):
        assert [other for other in tags if re.match(regex, other)] == [tag]


def test_charts_of_one_title_become_one_in_the_order_of_the_first():
    charts = [
        Chart("b", "one", ("x",), band=("l", "u")),
        Chart("a", "one", ("y",)),
        Chart("b", "one", ("z", "x")),
        Chart("b", "two", ("x",), band=("l", "u")),
        Chart("b", "two", ("x",), band=("l", "u")),
    ]
    layout = dashboard(charts)
    assert list(layout) == ["b", "a"]
    assert layout["b"] == {"one": ("Multiline", ["^x$", "^z$"]), "two": ("Margin", ["x", "l", "u"])}
