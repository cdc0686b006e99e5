import numpy as np
import pytest
import torch

from eigenscope.figures import spectrum_figure


def spectra(count=100, dim=6, seed=0):
    values = torch.rand(count, dim, generator=torch.Generator().manual_seed(seed))
    return values.sort(-1, descending=True).values


def curve(figure, name):
    (line,) = [line for line in figure.axes[0].lines if line.get_label().startswith(name)]
    return line


def test_medians_and_bands_are_those_of_the_numbers():
    series = {"network": spectra(), "untrained": spectra(50, seed=1), "random": spectra(70, seed=2)}
    figure = spectrum_figure(series["network"], series["random"], series["untrained"], title="Sector M")
    axes = figure.axes[0]
    for name, values in series.items():
        line = curve(figure, name)
        assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(line.get_ydata(), values.quantile(0.5, 0), rtol=1e-6)
        assert f"{len(values)} matrices" in line.get_label()
    band = axes.collections[0].get_paths()[0].vertices
    for percentile in (0.05, 0.95):
        for index, value in enumerate(series["network"].quantile(percentile, 0), start=1):
            assert np.isclose(band[band[:, 0] == index][:, 1], float(value), rtol=1e-6).any()
    edges = [line.get_ydata() for line in axes.lines if line.get_color() == curve(figure, "random").get_color()]
    np.testing.assert_allclose(edges[1], series["random"].quantile(0.05, 0), rtol=1e-6)
    np.testing.assert_allclose(edges[2], series["random"].quantile(0.95, 0), rtol=1e-6)
    assert axes.get_title() == "Sector M"
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert len(figure.legends[0].get_texts()) == 3
    assert len({curve(figure, name).get_color() for name in series}) == 3


def test_untrained_may_be_unknown():
    figure = spectrum_figure(spectra(1), spectra())
    assert len(figure.legends[0].get_texts()) == 2


def test_a_spectrum_that_is_not_finite_is_counted():
    values = spectra(5)
    values[2, 0] = torch.nan
    line = curve(spectrum_figure(values, spectra()), "network")
    assert line.get_label() == "network: 4 matrices, 1 more not finite"
    np.testing.assert_allclose(line.get_ydata(), values[[0, 1, 3, 4]].quantile(0.5, 0), rtol=1e-6)
    nothing = curve(spectrum_figure(torch.full((3, 6), torch.inf), spectra()), "network")
    assert np.isnan(nothing.get_ydata()).all()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"random.*must be \(N, 6\), got \(100, 5\)"):
        spectrum_figure(spectra(), spectra(dim=5))
    with pytest.raises(ValueError, match="network"):
        spectrum_figure(spectra()[0], spectra())
