import numpy as np
import pytest
import torch

from eigenscope.figures import cv_histogram


def heights(figure):
    return np.array([bar.get_height() for bar in figure.axes[0].patches])


def lines(figure):
    return {line.get_label().split(":")[0]: line.get_xdata()[0] for line in figure.axes[0].lines}


def test_every_matrix_is_counted_and_every_line_stands_at_its_number():
    cvs = 0.2 + 0.01 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    figure = cv_histogram(cvs, 0.215, random=0.203, untrained=0.201, title="Sector M")
    axes = figure.axes[0]
    assert heights(figure).sum() == 300
    edges = [bar.get_x() for bar in axes.patches] + [axes.patches[-1].get_x() + axes.patches[-1].get_width()]
    np.testing.assert_array_equal(heights(figure), np.histogram(cvs.double(), edges)[0])
    expected = {"target": 0.215, "random unit points": 0.203, "untrained (step 0), mean": 0.201}
    assert lines(figure) == pytest.approx(expected | {"mean of the network": float(cvs.mean())}, rel=1e-6)
    assert axes.get_title() == "Sector M"
    assert axes.get_xlabel()
    assert axes.get_ylabel() == "matrices"
    assert len(figure.legends[0].get_texts()) == 5


def test_lines_that_are_not_known_are_left_out():
    figure = cv_histogram(torch.tensor([0.3]))
    assert set(lines(figure)) == {"mean of the network"}
    assert heights(figure).sum() == 1


def test_odd_numbers():
    cvs = torch.tensor([0.2, 0.2, torch.nan, torch.inf])
    figure = cv_histogram(cvs, random=0.2)
    assert heights(figure).sum() == 2
    assert figure.legends[0].get_texts()[-1].get_text()
    assert any("2 more without a CV" in text.get_text() for text in figure.legends[0].get_texts())
    assert heights(cv_histogram(torch.zeros(7))).sum() == 7
    assert heights(cv_histogram(torch.tensor([0.1, 1e6]))).sum() == 2
    assert "mean of the network" not in lines(cv_histogram(torch.full((3,), torch.nan), random=0.2))


@pytest.mark.parametrize("name", ["target", "random", "untrained"])
def test_a_line_needs_a_number(name):
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        cv_histogram(torch.ones(3), **{name: float("nan")})


def test_the_shape_is_checked():
    with pytest.raises(ValueError, match=r"cvs must be \(N,\)"):
        cv_histogram(torch.ones(3, 2))
