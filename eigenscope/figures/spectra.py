"""Singular value spectra of many matrices beside random and untrained baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from eigenscope.figures.palette import NETWORK, RANDOM, UNTRAINED

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.figure import Figure


def spectrum_figure(
    singular_values: Tensor, random: Tensor, untrained: Tensor | None = None, title: str = "Singular values"
) -> Figure:
    """Median and 5th to 95th percentile of each singular value over matrices, beside its baselines.

    The network's band is filled, the baselines' have edges of thin lines. Matrices with a value that is not finite are
    left out and counted in the legend.

    Args:
        singular_values: (N, D) of the network's N matrices, descending.
        random: (any number, D), those of independent uniform unit points.
        untrained: (any number, D), those of the network before training.
        title: of the figure.

    Raises:
        ValueError: spectra are not (N, D), or differ in D.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series = {
        "network": (singular_values, NETWORK),
        "untrained (step 0)": (untrained, UNTRAINED),
        "random unit points": (random, RANDOM),
    }
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, (spectra, look) in series.items():
        if spectra is None:
            continue
        if spectra.ndim != 2 or spectra.shape[1] != singular_values.shape[-1]:
            raise ValueError(
                f"singular values ({name}) must be (N, {singular_values.shape[-1]}), got {tuple(spectra.shape)}"
            )
        finite = spectra[spectra.isfinite().all(1)].detach().cpu().double().numpy()
        left_out = len(spectra) - len(finite)
        label = f"{name}: {len(finite):,} matrices" + (f", {left_out:,} more not finite" if left_out else "")
        index = np.arange(1, spectra.shape[1] + 1)
        low, median, high = (
            np.quantile(finite, (0.05, 0.5, 0.95), axis=0) if len(finite) else np.full((3, len(index)), np.nan)
        )
        axes.plot(index, median, label=label, marker="o", markersize=4, **look)
        if name == "network":
            axes.fill_between(index, low, high, color=look["color"], alpha=0.2, linewidth=0)
        else:  # three filled bands on top of each other would hide which is which
            for edge in (low, high):
                axes.plot(index, edge, linewidth=0.8, **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel="index, from the largest", ylabel="singular value: median, 5 to 95 % band")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
