import subprocess
import sys

import numpy as np
import pytest
import torch

from eigenscope.figures import angle_figure, eigenvalue_figure, overlap_figure


def drawn(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    return figure


def curve(axes, name):
    (line,) = [line for line in axes.lines if line.get_label() == name]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


ANGLES = torch.tensor([[10.0, 0.05, 0.06], [20.0, 1e-9, 0.07], [30.0, 85.0, 89.0]])


def test_angles_are_those_of_the_numbers_down_to_the_floor():
    sides = {"L": {"previous": ANGLES, "pre_spike": ANGLES[2:]}, "R": {"previous": ANGLES * 0.5}}
    figure = drawn(angle_figure(sides, k=8, spikes=[25, 90], title="weight"))
    left, right = figure.axes
    steps, top1 = curve(left, "previous, top-1")
    assert steps.tolist() == [10, 20, 30]
    np.testing.assert_allclose(top1, [0.05, 1e-3, 85.0], rtol=1e-6)
    np.testing.assert_allclose(curve(left, "previous, top-8")[1], ANGLES[:, 2], rtol=1e-6)
    assert curve(left, "pre_spike, top-8")[0].tolist() == [30]
    low, high = left.get_ylim()
    assert low < 1e-3 < 90 < high
    assert [axes.get_title() for axes in (left, right)] == ["L", "R"]
    assert [x for x, _ in zip(*curve(left, "gradient spike"), strict=True)] == [25, 25]  # 90 is not covered
    assert not any(line.get_label() == "gradient spike" for line in right.lines)
    colours = {line.get_label(): line.get_color() for line in left.lines}
    assert colours["previous, top-1"] == colours["previous, top-8"] != colours["pre_spike, top-8"]
    assert len(figure.legends[0].get_texts()) == 5
    assert figure.get_suptitle() == "weight"


def test_a_row_of_nan_breaks_a_curve():
    broken = torch.cat([ANGLES, torch.tensor([[31.0, torch.nan, torch.nan]]), ANGLES + 30])
    values = curve(drawn(angle_figure({"L": {"pre_spike": broken}}, 2)).axes[0], "pre_spike, top-2")[1]
    assert np.isnan(values).tolist() == [False] * 3 + [True] + [False] * 3


def test_eigenvalues_not_above_zero_are_left_out():
    table = torch.tensor([[1.0, 4.0, 2.0, 1e-3], [2.0, 5.0, 2.5, -1e-3], [3.0, 6.0, 3.0, 0.0]])
    figure = drawn(eigenvalue_figure({"L": table, "R": table[:, :2]}, {"L": [1, 2, 5], "R": [1]}, spikes=[2]))
    left, right = figure.axes
    np.testing.assert_allclose(curve(left, "rank 2")[1], [2, 2.5, 3])
    assert np.isnan(curve(left, "rank 5")[1]).tolist() == [False, True, True]
    assert left.get_yscale() == "log"
    assert [line.get_label() for line in right.lines] == ["rank 1", "gradient spike"]
    assert len(figure.legends[0].get_texts()) == 4


def test_overlaps_are_shown_as_they_are():
    overlap = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    overlap[1, 2] = torch.nan
    figure = drawn(overlap_figure({"L": overlap, "R": torch.eye(3)}, {"L": 12, "R": 3}, "pre_spike, step 7"))
    left, right = figure.axes[:2]
    pixels = left.images[0].get_array()
    assert np.argwhere(pixels.mask).tolist() == [[1, 2]]
    np.testing.assert_allclose(pixels.filled(0), overlap.nan_to_num(0), rtol=1e-6)
    assert left.get_title() == "L: 12 eigenvectors, in blocks of 3"
    assert right.get_title() == "R: 3 eigenvectors"
    assert left.get_xlabel() == "rank in pre_spike, step 7"
    assert (left.images[0].norm.vmin, left.images[0].norm.vmax) == (0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: angle_figure({}, 8), "sides must have at least one side"),
        (lambda: angle_figure({"L": {"previous": ANGLES[:, :2]}}, 8), r"sides\['L'\]\['previous'\] must be \(N, 3\)"),
        (lambda: eigenvalue_figure({"L": ANGLES}, {"L": [1]}), r"sides\['L'\] must be \(N, 2\), got \(3, 3\)"),
        (lambda: overlap_figure({"L": ANGLES[:2]}, {"L": 3}, "f"), r"sides\['L'\] must be \(m, m\), got \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_figures_know_no_pyplot_and_importing_them_no_matplotlib():
    program = (
        "import sys, torch, eigenscope.figures as figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figures.angle_figure({'L': {'previous': torch.ones(2, 3)}}, 8)\n"
        "figures.eigenvalue_figure({'L': torch.ones(2, 2)}, {'L': [1]})\n"
        "figures.overlap_figure({'L': torch.eye(3)}, {'L': 3}, 'previous')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
