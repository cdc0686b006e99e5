import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from eigenscope.figures import reconstruction_figure


def noise(count=2, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def pictures(figure):
    """Rows of (input, reconstruction, error), each (H, W, 3)."""
    arrays = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    return [arrays[start : start + 3] for start in range(0, len(arrays), 3)]


def labels(figure):
    return [text.get_text().split("\n") for text in figure.texts]


def drawn(figure):
    """What a reader would see, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_natural_images_look_like_themselves():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = pictures(reconstruction_figure(images, images * 0.5, ["a", "b"]))
    for (shown, reconstruction, error), image in zip(rows, images.movedim(1, -1), strict=True):
        assert np.abs(shown - image.numpy() * 255).max() <= 0.51
        assert np.abs(reconstruction - image.numpy() * 127.5).max() <= 0.51
        assert np.abs(error - (0.5 - 0.5 * image.numpy()) * 255).max() <= 0.51


def test_noise_is_shown_about_grey_on_one_scale():
    images = noise()
    figure = reconstruction_figure(images, images + 0.25, ["a", "b"])
    for row, label, image in zip(pictures(figure), labels(figure), images, strict=True):
        q = image.abs().flatten().sort().values[math.ceil(0.99 * image.numel()) - 1]
        assert label[-1] == f"shown: ±{q:#.3g}"
        for shown, value in zip(row, (image, image + 0.25, torch.tensor(0.25)), strict=True):
            expected = ((value / q + 1) / 2).clamp(0, 1) * 255
            expected = expected.movedim(0, -1) if expected.ndim else expected
            assert np.abs(shown - expected.numpy()).max() <= 0.51


def test_errors_are_those_of_all_pixels():
    images = noise()
    figure = reconstruction_figure(images, torch.zeros_like(images), ["gaussian", "other"])
    power = float(images[0].square().mean())
    assert labels(figure)[0][:4] == ["gaussian", f"MSE {power:#.3g}", f"power {power:#.3g}", "MSE/power 1.00"]
    assert labels(figure)[1][0] == "other"
    assert [axes.get_title() for axes in figure.axes[:3]] == ["input", "reconstruction", "error"]


def test_a_heavy_tail_leaves_the_rest_visible():
    images = torch.distributions.Cauchy(0.0, 1.0).icdf(torch.linspace(0.001, 0.999, 3 * 32 * 32)).reshape(1, 3, 32, 32)
    images[0, 0, 0, 0] = 1e6
    figure = reconstruction_figure(images, images * 0.9, ["cauchy"])
    shown = pictures(figure)[0][0]
    assert (np.abs(shown.astype(float) - 127.5) > 2).mean() > 0.5
    assert shown[0, 0, 0] == 255


def test_numbers_that_are_not_finite_stand_out():
    images, reconstructions = noise(3), noise(3)
    images[0, 1, 2, 3] = torch.nan
    reconstructions[1, :, 4, 5] = torch.inf
    images[2] = torch.nan
    figure = reconstruction_figure(images, reconstructions, ["a", "b", "c"])
    rows = pictures(figure)
    magenta = [255, 0, 255]
    assert rows[0][0][2, 3].tolist() == rows[0][2][2, 3].tolist() == magenta
    assert rows[1][1][4, 5].tolist() == magenta
    assert rows[0][1][2, 3].tolist() != magenta
    assert "input: 1 not finite" in labels(figure)[0]
    assert "output: 3 not finite" in labels(figure)[1]
    assert "MSE inf" in labels(figure)[1]
    assert (rows[2][0] == magenta).all()


def test_all_zeros():
    zeros = torch.zeros(1, 3, 4, 4)
    figure = reconstruction_figure(zeros, zeros, ["nothing"])
    assert labels(figure)[0] == ["nothing", "MSE 0.00", "power 0.00", "shown: 0 to 1"]
    assert (pictures(figure)[0][2] == 128).all()
    sparse = zeros.clone()
    sparse[0, 0, 0, 0] = -2
    assert labels(reconstruction_figure(sparse, zeros, ["one"]))[0][-1] == "shown: ±2.00"


def test_sixteen_images_fit_in_two_columns_without_overlap():
    images = noise(16, 64)
    figure = reconstruction_figure(images, images, [f"type {number}" for number in range(16)])
    image = drawn(figure)
    assert 800 < image.shape[1] < 1400
    assert 800 < image.shape[0] < 1400
    renderer = figure.canvas.get_renderer()
    boxes = [item.get_window_extent(renderer) for item in [*figure.texts, *figure.axes]]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= image.shape[1]
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
    assert {round(axes.get_window_extent().width) for axes in figure.axes} == {128}  # 64 pixels, twice as large


@pytest.mark.parametrize(
    ("inputs", "reconstructions", "names", "message"),
    [
        (noise()[:, :1], noise(), "ab", "inputs must be real images"),
        (noise().long(), noise(), "ab", "inputs must be real images"),
        (noise()[:0], noise()[:0], "", "inputs must be real images"),
        (noise(), noise()[:1], "ab", "reconstructions must be"),
        (noise(), noise(), "abc", "names must be as many"),
    ],
)
def test_wrong_input_is_named(inputs, reconstructions, names, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_figure(inputs, reconstructions, list(names))


def test_figures_know_no_pyplot_and_importing_them_no_matplotlib():
    program = (
        "import sys, torch, eigenscope.figures as figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figures.reconstruction_figure(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), ['a'])\n"
        "figures.spectrum_figure(torch.ones(2, 4), torch.ones(2, 4))\n"
        "figures.cv_histogram(torch.ones(2))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
