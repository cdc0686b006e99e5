"""The covering set of the matrix: every experiment, all pairs of choices; with --long every kind at every precision."""

from itertools import combinations

import pytest

from tests.matrix.cells import new_folder
from tests.matrix.covering import AXES, EXPERIMENTS, OVERLAID, OVERLAYS, SHORT, pairs, quick
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


def groups(ranks):
    """The cells of each experiment, those that are not of the short set apart."""
    for experiment in EXPERIMENTS:
        cells = [cell for cell in quick(experiment) if cell.ranks == ranks]
        if now := [cell for cell in cells if cell in SHORT]:
            yield pytest.param(now, id=experiment)
        if rest := [cell for cell in cells if cell not in SHORT]:
            yield pytest.param(rest, id=f"{experiment} further", marks=pytest.mark.long)


@pytest.mark.parametrize("cells", [*groups(1)])
def test_one_process(cells, runner):
    check(runner, cells)


@pytest.mark.xdist_group("ddp")  # one pool for all, with --dist loadgroup
@pytest.mark.parametrize("cells", [*groups(2)])
def test_two_ranks(cells, runner):
    check(runner, cells)


def test_all_pairs_of_choices_occur():
    wanted = {((a, x), (b, y)) for (a, xs), (b, ys) in combinations(AXES.items(), 2) for x in xs for y in ys}
    assert wanted - pairs(SHORT) == set()
    assert {cell.experiment for cell in SHORT} == set(EXPERIMENTS)


def test_every_overlay_goes_with_an_experiment_and_every_experiment_is_on_the_page():
    assert set(OVERLAID) == set(OVERLAYS)
    assert read().keys() == {(e, precision) for e in EXPERIMENTS for precision in AXES["precision"]}
