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
_PANELS = 12  # layers; of more, as many evenly spaced are drawn
_NOT_FINITE = "#FF00FF"  # which the colour map does not hold


def rate_distortion_figure(
    layers: Sequence[str],
    codecs: Sequence[str],
    bits: Tensor,
    errors: Tensor,
    bound_bits: Tensor,
    bounds: Tensor,
    title: str = "Rate and distortion of keys and values",
) -> Figure:
    """Relative error against bits per element, a panel a layer, beside the rate–distortion bound.

    Keys are filled and their bound is solid, values are open and theirs is dashed. Errors are on a log scale; a codec
    whose errors are all zero is only named in the legend, as is what was not measured. Of more than twelve layers
    twelve are drawn, evenly spaced.

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
    from matplotlib.ticker import MaxNLocator

    shape = (len(codecs), len(layers), 2)
    _check("bits", bits, shape)
    _check("errors", errors, shape)
    _check("bounds", bounds, (len(layers), 2, len(bound_bits)))
    chosen = torch.linspace(0, len(layers) - 1, min(_PANELS, len(layers)), dtype=torch.float32).round().long().tolist()
    short, common = _short(layers)
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(max(7.0, 1 + 3.1 * columns), 2.0 + 2.6 * rows), layout="constrained")
    few = "" if len(chosen) == len(layers) else f", {len(chosen)} of {len(layers)} layers"
    figure.suptitle(f"{title}, everything stored counted{few}\nlayers {common}", fontsize=11)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    x, y = (values.detach().cpu().double().numpy() for values in (bits, errors))
    curves = bounds.detach().cpu().double().numpy()
    drawn = np.isfinite(y) & (y > 0) & np.isfinite(x)
    right = 1.08 * x[drawn].max(initial=1.0)
    entries: list[Any] = []
    for axes, layer in zip(panels, chosen, strict=False):
        for role, line in enumerate(("-", "--")):
            axes.plot(bound_bits.cpu().numpy(), curves[layer, role], color="0.45", linestyle=line, linewidth=1.3)
            for number in range(len(codecs)):
                if drawn[number, layer, role]:
                    axes.plot(x[number, layer, role], y[number, layer, role], **_look(number, filled=role == 0))
        axes.set(title=f"layer {short[layer]}", yscale="log", xlim=(0, right))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(linewidth=0.4, alpha=0.5)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    if drawn.any():
        panels[0].set_ylim(0.5 * y[drawn].min(), 1.5 * y[drawn].max(initial=1.0))
    for number, codec in enumerate(codecs):
        known = x[number][np.isfinite(x[number])]
        name = codec if drawn[number].any() else f"{codec}: {_undrawn(known, y[number])}"
        entries.append(Line2D([], [], label=name, **_look(number, filled=bool(drawn[number].any()))))
    entries += [Line2D([], [], color="0.45", linestyle="-", label="bound, keys")]
    entries += [Line2D([], [], color="0.45", linestyle="--", label="bound, values")]
    entries += [Line2D([], [], linestyle="none", marker="o", color="0.45", markersize=7, label="keys")]
    entries += [
        Line2D([], [], linestyle="none", marker="o", color="0.45", fillstyle="none", markersize=7, label="values")
    ]
    for axes in panels[max(0, len(chosen) - columns) : len(chosen)]:
        axes.set_xlabel("bits per element")  # not of the whole figure: the legend would cover it
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel("relative error ‖X − X̂‖ / ‖X‖", fontsize=10)
    figure.legend(handles=entries, loc="outside lower center", ncols=5 if columns > 2 else 4, fontsize=9)
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
        "markersize": 7,
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
