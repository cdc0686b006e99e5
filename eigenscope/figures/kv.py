"""Figures of KV-cache compression: rate against distortion, and heat maps over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe and Ito's
_MARKERS = "os^Dv*P"
_NOT_FINITE = "#FF00FF"  # which the colour map does not hold


def rate_distortion_figure(
    layers: Sequence[str],
    codecs: Sequence[str],
    bits: Tensor,
    errors: Tensor,
    bound_bits: Tensor,
    bounds: Tensor,
    title: str = "Rate and distortion",
) -> Figure:
    """Relative error against bits per element over all layers, keys beside values, with the rate–distortion bound.

    A codec stands at the median over the layers, with a bar from the least error of a layer to the largest; the bound
    is drawn alike. Codecs at the same bits stand side by side. Errors are on a log scale. A codec without errors, or
    one that was not measured, is only named in the legend.

    Args:
        layers: names of the L layers.
        codecs: names of the C codecs.
        bits: (C, L, 2) bits per element of keys and of values.
        errors: (C, L, 2) relative errors.
        bound_bits: (G,) where the bound is known, ascending.
        bounds: (L, 2, G) relative error of the bound.
        title: of the figure.

    Raises:
        ValueError: the shapes do not agree, or there is no layer or no codec.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    shape = (len(codecs), len(layers), 2)
    _check("bits", bits, shape)
    _check("errors", errors, shape)
    _check("bounds", bounds, (len(layers), 2, len(bound_bits)))
    rates, found = (values.detach().cpu().double() for values in (bits, errors))
    seen = found.isfinite() & (found > 0) & rates.isfinite()
    rates, found = (torch.where(seen, values, torch.nan) for values in (rates, found))
    x, y = (values.nanmedian(1).values.numpy() for values in (rates, found))  # (C, 2)
    low, high = torch.where(seen, found, torch.inf).amin(1), torch.where(seen, found, -torch.inf).amax(1)
    curves = bounds.detach().cpu().double()
    grid = bound_bits.detach().cpu().double().numpy()
    right = max(1.0, 1.1 * float(np.nanmax(x, initial=0.0)))
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")  # read at half its size in TensorBoard's grid
    spread = "" if len(layers) == 1 else f", median and range of {len(layers)} layers"
    figure.suptitle(f"{title}{spread}\neverything stored counted", fontsize=14)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for role, (axes, name) in enumerate(zip(panels, ("keys", "values"), strict=True)):
        of_role = curves[:, role]
        axes.fill_between(grid, of_role.amin(0).numpy(), of_role.amax(0).numpy(), color="0.85", linewidth=0)
        axes.plot(grid, of_role.median(0).values.numpy(), color="0.35", linewidth=2)
        for number in range(len(codecs)):
            at, middle = x[number, role], y[number, role]
            if np.isfinite(middle):
                bar = [[middle - float(low[number, role])], [float(high[number, role]) - middle]]
                same = np.flatnonzero(np.abs(x[:, role] - at) < 0.02 * right)
                at = at + 0.025 * right * (int(np.flatnonzero(same == number)[0]) - (len(same) - 1) / 2)
                axes.errorbar(at, middle, yerr=bar, capsize=4, elinewidth=1.6, **_look(number, filled=True))
        axes.set(yscale="log", xlim=(0, right), xlabel="bits per element")
        axes.set_title(name, fontsize=14)
        axes.xaxis.label.set_size(13)
        axes.tick_params(labelsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(linewidth=0.5, alpha=0.5)
    panels[0].set_ylabel("relative error ‖X − X̂‖ / ‖X‖", fontsize=13)
    if np.isfinite(y).any():
        panels[0].set_ylim(0.5 * float(low.min()), max(1.5, 1.5 * float(high.max())))
    entries: list[Any] = []
    for number, codec in enumerate(codecs):
        drawn = bool(np.isfinite(y[number]).any())
        known = bits[number].detach().cpu().double().numpy()
        undrawn = _undrawn(known[np.isfinite(known)], errors[number].detach().cpu().double().numpy())
        name = codec if drawn else f"{codec}: {undrawn}"
        entries.append(Line2D([], [], label=name, **_look(number, filled=drawn)))
    entries += [Line2D([], [], color="0.35", linewidth=2, label="bound")]
    entries += [Patch(color="0.85", label="its range")] * (len(layers) > 1)
    figure.legend(handles=entries, loc="outside lower center", ncols=3, fontsize=12)
    return figure


def layer_heat_maps(
    layers: Sequence[str],
    codecs: Sequence[str],
    measures: Mapping[str, Tensor],
    title: str = "Codecs on each layer",
) -> Figure:
    """One map a measure, a codec a row, a layer a column, each value printed, colours on a log scale.

    What is zero has the colour of the least value, what was not measured is magenta.

    Args:
        layers: names of the L layers.
        codecs: names of the C codecs.
        measures: what it is called to (C, L), >= 0, small is good.
        title: of the figure.

    Raises:
        ValueError: the shapes do not agree, or there is no layer, no codec or no measure.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    if not measures:
        raise ValueError("measures must have at least one, got none")
    for name, tensor in measures.items():
        _check(f"measures[{name!r}]", tensor, (len(codecs), len(layers)))
    short, common = _short(layers)
    height = 1.0 + len(measures) * (0.9 + 0.3 * len(codecs))
    figure = Figure(figsize=(max(6.5, 2.6 + 0.62 * len(layers)), height), layout="constrained")
    figure.suptitle(title)
    colours = colormaps["viridis_r"].with_extremes(bad=_NOT_FINITE)
    for axes, (name, tensor) in zip(
        figure.subplots(len(measures), 1, squeeze=False)[:, 0], measures.items(), strict=True
    ):
        values = tensor.detach().cpu().double().numpy()
        positive = values[np.isfinite(values) & (values > 0)]
        low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
        norm = LogNorm(low, max(high, 1.001 * low))
        pixels = np.ma.masked_invalid(np.where(values == 0, low, values))
        image = axes.imshow(pixels, norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes, pad=0.01)
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = colours(norm(max(value, low)))
            dark = np.isfinite(value) and 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(
                column, row, _printed(value), ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        axes.set_xticks(range(len(layers)), short)
        axes.set_yticks(range(len(codecs)), codecs)
        axes.set_title(name, fontsize=10)
    axes.set_xlabel(f"layer ({common})")
    return figure


def _look(number: int, filled: bool) -> dict[str, Any]:
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "color": colour,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": colour if filled else "none",
        "markeredgecolor": colour,
        "markersize": 9,
        "linestyle": "none",
    }


def _undrawn(bits: np.ndarray, errors: np.ndarray) -> str:
    if not bits.size:
        return "not measured"
    return f"no error at {bits.mean():.3g} bits" if not np.nanmax(errors) else "errors not finite"


def _printed(value: float) -> str:
    """At most five characters."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or 0.001 <= value < 1000:
        return f"{value:.2g}" if value < 10 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _short(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without the parts that all share before and after, and the pattern that they were taken from."""
    parts = [name.split(".") for name in names]
    if len(parts) < 2:
        return list(names), "all layers" if not names else names[0]
    shortest = min(map(len, parts)) - 1
    before = next((i for i in range(shortest) if len({tuple(p[: i + 1]) for p in parts}) > 1), shortest)
    after = next(
        (i for i in range(shortest - before) if len({tuple(p[-i - 1 :]) for p in parts}) > 1), shortest - before
    )
    short = [".".join(p[before : len(p) - after]) for p in parts]
    return short, ".".join([*parts[0][:before], "*", *parts[0][len(parts[0]) - after :]])


def _check(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape != shape or 0 in shape:
        raise ValueError(f"{name} must be {shape} for the codecs and layers, none of them 0, got {tuple(values.shape)}")
