"""Heat map of the errors of many batteries on many types of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 40  # batteries; more are not named one by one
_NOT_FINITE = "#FF00FF"  # which the colour map does not hold


def battery_matrix(errors: Tensor, names: Sequence[str], mixtures: Sequence[Sequence[str]]) -> Figure:
    """Matrix of mean squared errors on a log scale, a battery a row, a noise type a column.

    Rows are grouped by what a battery is best at: the type on which it is furthest below the median battery, as the
    smallest error alone would be that on the easiest noise nearly everywhere. In a group the best comes first. Up to
    40 batteries are named, each by number and mixture, with a dot on every type it was trained on; of more, the groups
    are named and counted. What is not finite is magenta.

    Args:
        errors: (K, T), see :func:`eigenscope.nn.cross_evaluate`.
        names: of the T types.
        mixtures: names of the types each of the K batteries was trained on.

    Raises:
        ValueError: the names or mixtures are not as many as columns and rows, there are none, or a mixture has a
            type that is not among the names.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    _check(errors, names, mixtures)
    values = errors.detach().cpu().double()
    best, order = _ranked(values)
    shown = values[order].numpy()
    positive = shown[np.isfinite(shown) & (shown > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    norm = LogNorm(low, max(high, 1.001 * low))
    few = len(values) <= _NAMED
    figure = Figure(figsize=(3.5 + 0.42 * len(names), 2.2 + 0.24 * len(values) if few else 10), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(bad=_NOT_FINITE)
    pixels = np.ma.masked_invalid(np.where(shown == 0, low, shown))  # 0 has no logarithm
    image = axes.imshow(pixels, norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
    figure.colorbar(image, label="mean squared error", pad=0.02)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set(title=f"{len(values)} batteries on {len(names)} kinds of noise", xlabel="evaluated on")
    groups = best[order]
    for edge in (groups.diff().nonzero()[:, 0] + 0.5).tolist():
        axes.axhline(edge, color="white", linewidth=1.5 if few else 0.8)
    if few:
        _name_batteries(axes, order.tolist(), names, mixtures)
    else:
        _name_groups(axes, groups, names)
    return figure


def _check(errors: Tensor, names: Sequence[str], mixtures: Sequence[Sequence[str]]) -> None:
    if errors.ndim != 2 or 0 in errors.shape or errors.shape != (len(mixtures), len(names)):
        raise ValueError(
            f"errors must be (K, T) with K mixtures and T names, got {tuple(errors.shape)}, "
            f"{len(mixtures)} mixtures and {len(names)} names"
        )
    for row, mixture in enumerate(mixtures):
        for name in mixture:
            if name not in names:
                raise ValueError(f"mixtures[{row}] has {name!r}; there are {', '.join(names)}")


def _ranked(errors: Tensor) -> tuple[Tensor, Tensor]:
    """For every battery the type it is best at, and the order in which they are drawn."""
    logs = errors.where(errors.isfinite(), torch.inf).clamp_min(torch.finfo(errors.dtype).tiny).log()
    medians = logs.median(0).values
    relative = torch.where(logs.isfinite() & medians.isfinite(), logs - medians, torch.inf)
    least, best = relative.min(1)
    by_error = least.argsort(stable=True)
    return best, by_error[best[by_error].argsort(stable=True)]


def _name_batteries(axes: Axes, order: Sequence[int], names: Sequence[str], mixtures: Sequence[Sequence[str]]) -> None:
    labels = []
    for row, battery in enumerate(order):
        mixture = mixtures[battery]
        short = " + ".join(mixture) if len(mixture) <= 4 else f"{len(mixture)} types"
        labels.append(f"{short or 'untrained'}  {battery}")
        columns = [list(names).index(name) for name in mixture]
        axes.scatter(columns, [row] * len(columns), s=18, color="white", edgecolors="black", linewidths=0.8)
    axes.set_yticks(range(len(order)), labels, fontsize=8)
    axes.set_ylabel("trained on, marked ○; number of the battery")


def _name_groups(axes: Axes, groups: Tensor, names: Sequence[str]) -> None:
    kinds, counts = torch.unique_consecutive(groups, return_counts=True)
    ends = counts.cumsum(0)
    middles = (ends - (counts + 1) / 2).tolist()
    axes.set_yticks(middles, [f"{names[k]} ({n})" for k, n in zip(kinds.tolist(), counts.tolist(), strict=True)])
    axes.set_ylabel("best at, beside the median battery (batteries)")
