import pytest
import torch

from eigenscope.figures import layer_heat_maps, rate_distortion_figure

CODECS = ["exact", "int4", "svd"]


def numbers(layers=3):
    generator = torch.Generator().manual_seed(0)
    spread = 1 + 0.1 * torch.rand(2, 3, layers, 2, generator=generator)
    bits = torch.tensor([32.0, 4.0, 1.5])[:, None, None] * spread[0]
    bits[0] = 32
    errors = torch.tensor([0.0, 0.05, 0.4])[:, None, None] * spread[1]
    grid = torch.linspace(0, 8, 9)
    return bits, errors, grid, (2.0**-grid).expand(layers, 2, -1) * torch.rand(layers, 2, 1, generator=generator)


def names(layers):
    return [f"net.blocks.{number}.attention" for number in range(layers)]


def drawn(axes):
    """Of each codec that is drawn its bits, median, least and largest error."""
    found = []
    for container in axes.containers:
        line, _, (bar,) = container.lines
        (low, high) = bar.get_segments()[0][:, 1]
        found.append((float(line.get_xdata()[0]), float(line.get_ydata()[0]), float(low), float(high)))
    return found


@pytest.mark.parametrize("layers", [1, 3, 32])
def test_keys_and_values_have_their_medians_and_ranges(layers):
    bits, errors, grid, bounds = numbers(layers)
    figure = rate_distortion_figure(names(layers), CODECS, bits, errors, grid, bounds)
    assert [axes.get_title() for axes in figure.axes] == ["keys", "values"]
    for role, axes in enumerate(figure.axes):
        x, y = bits[1:, :, role].double(), errors[1:, :, role].double()
        expected = torch.stack([x.median(1).values, y.median(1).values, y.amin(1), y.amax(1)], 1)
        torch.testing.assert_close(torch.tensor(drawn(axes), dtype=torch.float64), expected)
        (curve,) = [line for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) == len(grid)]
        assert curve.get_ydata().tolist() == bounds[:, role].double().median(0).values.tolist()
        assert axes.get_yscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["exact: no error at 32 bits", "int4", "svd", "bound"] + ["its range"] * (layers > 1)
    assert (f"{layers} layers" in figure.get_suptitle()) == (layers > 1)
    figure.draw_without_rendering()


def test_codecs_at_the_same_bits_stand_side_by_side():
    bits, errors, grid, bounds = numbers(1)
    bits[2] = bits[1]
    for axes in rate_distortion_figure(names(1), CODECS, bits, errors, grid, bounds).axes:
        (left, *_), (right, *_) = drawn(axes)
        assert 0 < right - left < 0.2


def test_it_is_readable_at_half_its_size():
    figure = rate_distortion_figure(names(12), CODECS, *numbers(12))
    figure.draw_without_rendering()
    texts = [t for axes in figure.axes for t in (axes.xaxis.label, axes.title, *axes.get_xticklabels())]
    assert min(text.get_fontsize() for text in [*texts, *figure.legends[0].get_texts()]) >= 12
    assert max(figure.get_size_inches()) * figure.dpi <= 800


def test_what_was_not_measured_is_named():
    bits, errors, grid, bounds = numbers()
    bits[2], errors[2] = torch.nan, torch.nan
    figure = rate_distortion_figure(names(3), CODECS, bits, errors, grid, bounds)
    assert "svd: not measured" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure.draw_without_rendering()


def test_heat_maps_print_every_value():
    values = torch.tensor([[0.0, 0.0], [0.05, 2e-5], [torch.nan, 0.4]])
    figure = layer_heat_maps(["a.first.x", "a.second.x"], CODECS, {"error": values, "KL": values / 10})
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in maps] == ["error", "KL"]
    assert [text.get_text() for text in maps[0].texts] == ["0", "0", "0.05", "2e-5", "–", "0.4"]
    assert [text.get_text() for text in maps[0].get_xticklabels()] == ["first", "second"]
    assert [text.get_text() for text in maps[0].get_yticklabels()] == CODECS
    shown = maps[0].images[0].get_array()
    assert (shown.mask.sum(), shown[0, 0], shown[2, 1]) == (1, pytest.approx(2e-5), pytest.approx(0.4))
    figure.draw_without_rendering()


def test_maps_without_any_value_are_drawn():
    empty = torch.full((3, 2), torch.nan)
    layer_heat_maps(["a", "b"], CODECS, {"error": empty, "zero": torch.zeros(3, 2)}).draw_without_rendering()
    _, errors, grid, bounds = numbers(2)
    nothing = torch.full_like(errors, torch.nan)
    rate_distortion_figure(["a", "b"], CODECS, nothing, nothing, grid, bounds).draw_without_rendering()


def test_shapes_are_checked():
    bits, errors, grid, bounds = numbers()
    with pytest.raises(ValueError, match=r"errors must be \(3, 3, 2\)"):
        rate_distortion_figure(names(3), CODECS, bits, errors[:2], grid, bounds)
    with pytest.raises(ValueError, match="bounds must be"):
        rate_distortion_figure(names(3), CODECS, bits, errors, grid[1:], bounds)
    with pytest.raises(ValueError, match=r"measures\['x'\] must be \(3, 2\)"):
        layer_heat_maps(names(2), CODECS, {"x": bits[..., 0]})
    with pytest.raises(ValueError, match="at least one"):
        layer_heat_maps(names(2), CODECS, {})
