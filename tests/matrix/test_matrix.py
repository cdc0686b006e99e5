"""The covering set of the matrix: every experiment at every precision, all pairs of the other choices."""

from itertools import combinations

import pytest

from tests.matrix.cells import new_folder
from tests.matrix.covering import AXES, EXPERIMENTS, KINDS, OVERLAID, OVERLAYS, pairs, quick
from tests.matrix.running import Runner
from tests.matrix.table import PAGE, read

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runner(two_ranks):
    with new_folder() as folder:
        yield Runner(folder, two_ranks.run)


def check(runner, cells):
    """Runs cells, none of which may be at fault, and compares them with the page."""
    results = [runner.result(cell) for cell in cells]
    assert [f"{result.cell}: {result.sentence}" for result in results if result.mark == "fault"] == []
    page, text = read(), PAGE.read_text()
    for result in results:
        said = page[result.cell.experiment, result.cell.precision].split(", ")
        assert result.mark in said, f"{result.cell}: python -m tests.matrix --covering writes the page anew"
        assert result.mark != "refused" or f"`{result.sentence}`" in text


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_precision(experiment, runner):
    check(runner, [cell for cell in quick(experiment) if cell.ranks == 1])


@pytest.mark.xdist_group("ddp")  # one pool for all, with --dist loadgroup
@pytest.mark.parametrize("experiment", KINDS)
def test_two_ranks(experiment, runner):
    check(runner, [cell for cell in quick(experiment) if cell.ranks == 2])


def test_all_pairs_of_choices_occur():
    wanted = {((a, x), (b, y)) for (a, xs), (b, ys) in combinations(AXES.items(), 2) for x in xs for y in ys}
    assert wanted - pairs([cell for experiment in EXPERIMENTS for cell in quick(experiment)]) == set()


def test_every_overlay_goes_with_an_experiment_and_every_experiment_is_on_the_page():
    assert set(OVERLAID) == set(OVERLAYS)
    assert read().keys() == {(e, precision) for e in EXPERIMENTS for precision in AXES["precision"]}
