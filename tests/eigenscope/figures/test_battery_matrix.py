import matplotlib
import numpy as np
import pytest
import torch

from eigenscope.figures.battery_matrix import battery_matrix

NAMES = ["gaussian", "pink", "cauchy"]


def drawn(figure):
    (image,) = figure.axes[0].images
    return image.get_array()


def test_rows_are_grouped_by_what_a_battery_is_best_at():
    errors = torch.tensor(
        [[1.0, 2.0, 100.0], [0.5, 3.0, 100.0], [1.0, 3.0, 10.0], [0.9, 3.0, 100.0], [1.0, 3.0, 100.0]]
    )
    mixtures = [("pink",), ("gaussian",), ("cauchy", "pink"), ("gaussian",), ()]
    figure = battery_matrix(errors, NAMES, mixtures)
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["gaussian  1", "gaussian  3", "untrained  4", "pink  0", "cauchy + pink  2"]
    np.testing.assert_allclose(drawn(figure), errors[[1, 3, 4, 0, 2]])
    assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
    assert [line.get_ydata()[0] for line in axes.lines] == [2.5, 3.5]
    marks = [tuple(mark) for points in axes.collections for mark in points.get_offsets().tolist()]
    assert sorted(marks) == [(0, 0), (0, 1), (1, 3), (1, 4), (2, 4)]
    assert axes.images[0].norm.vmin == 0.5
    assert axes.images[0].norm.vmax == 100
    assert figure.axes[1].get_yscale() == "log"


def test_hundreds_of_rows_are_named_by_group():
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(300, 3, generator=generator).exp()
    figure = battery_matrix(errors, NAMES, [("pink",)] * 300)
    axes = figure.axes[0]
    best = (errors / errors.median(0).values).argmin(1)
    counts = [int((best == kind).sum()) for kind in range(3)]
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{n} ({c})" for n, c in zip(NAMES, counts, strict=True)]
    assert axes.get_yticks()[1] == counts[0] + (counts[1] - 1) / 2
    assert not axes.collections
    shown = torch.from_numpy(drawn(figure).data)
    for kind, block in enumerate(shown.split(counts)):
        assert (block[:, kind].diff() >= 0).all()
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, errors.double().tolist()))


def test_what_is_not_finite_is_magenta_and_zero_the_least():
    errors = torch.tensor([[1.0, torch.inf, torch.nan], [2.0, 0.0, torch.nan]])
    figure = battery_matrix(errors, NAMES, [(), ()])
    (image,) = figure.axes[0].images
    colours = {tuple(row) for row in image.to_rgba(image.get_array())[np.ma.getmaskarray(image.get_array())].tolist()}
    assert np.ma.getmaskarray(image.get_array()).sum() == 3
    assert colours == {(1.0, 0.0, 1.0, 1.0)}
    assert np.ma.masked_invalid(image.norm(image.get_array())).min() == 0
    figure.canvas.draw()


@pytest.mark.parametrize("errors", [torch.full((1, 3), torch.nan), torch.ones(1, 3), torch.zeros(2, 3)])
def test_a_dull_matrix_is_drawn_without_a_warning(errors):
    battery_matrix(errors, NAMES, [("pink",)] * len(errors)).canvas.draw()


def test_it_is_in_no_global_list():
    battery_matrix(torch.ones(2, 3), NAMES, [(), ()])
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_wrong_shapes_and_names_are_named():
    with pytest.raises(ValueError, match=r"got \(2, 3\), 1 mixtures and 3 names"):
        battery_matrix(torch.ones(2, 3), NAMES, [()])
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        battery_matrix(torch.ones(0, 3), NAMES, [])
    with pytest.raises(ValueError, match=r"mixtures\[1\] has 'violet'; there are gaussian, pink, cauchy"):
        battery_matrix(torch.ones(2, 3), NAMES, [(), ("violet",)])
