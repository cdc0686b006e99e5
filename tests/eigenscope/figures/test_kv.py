import pytest
import torch
from matplotlib.colors import to_rgba

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


def points(axes):
    return {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if line.get_marker() != "None"
    }


def test_every_layer_has_its_points_and_bounds():
    bits, errors, grid, bounds = numbers()
    figure = rate_distortion_figure(names(3), CODECS, bits, errors, grid, bounds)
    assert [axes.get_title() for axes in figure.axes] == ["layer 0", "layer 1", "layer 2"]
    for layer, axes in enumerate(figure.axes):
        pairs = zip(bits[1:, layer].flatten().tolist(), errors[1:, layer].flatten().tolist(), strict=True)
        assert points(axes) == set(pairs)
        curves = [line for line in axes.lines if line.get_marker() == "None"]
        assert [line.get_linestyle() for line in curves] == ["-", "--"]
        assert curves[0].get_ydata().tolist() == bounds[layer, 0].tolist()
        assert axes.get_yscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["exact: no error at 32 bits", "int4", "svd", "bound, keys", "bound, values", "keys", "values"]
    assert "net.blocks.*.attention" in figure.get_suptitle()


def test_keys_are_filled_and_values_open():
    bits, errors, grid, bounds = numbers(1)
    (axes,) = rate_distortion_figure(names(1), CODECS, bits, errors, grid, bounds).axes
    faces = {
        float(line.get_ydata()[0]): line.get_markerfacecolor() for line in axes.lines if line.get_marker() != "None"
    }
    for codec in (1, 2):
        assert faces[float(errors[codec, 0, 1])] == "none"
        assert to_rgba(faces[float(errors[codec, 0, 0])])[3] == 1


def test_of_many_layers_some_are_drawn():
    figure = rate_distortion_figure(names(32), CODECS, *numbers(32))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert (len(titles), titles[0], titles[-1]) == (12, "layer 0", "layer 31")
    assert "12 of 32 layers" in figure.get_suptitle()


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
