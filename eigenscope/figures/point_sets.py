"""Singular values and CVs of simplex volumes of many point sets, beside those of chance and of no training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; the line styles tell them apart in print.
NETWORK: dict[str, Any] = {"color": "#0072B2", "linestyle": "-"}
UNTRAINED: dict[str, Any] = {"color": "#009E73", "linestyle": "--"}
RANDOM: dict[str, Any] = {"color": "#E69F00", "linestyle": ":"}
TARGET: dict[str, Any] = {"color": "#CC79A7", "linestyle": "-"}

_BINS = 25


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


def cv_histogram(
    cvs: Tensor,
    target: float | None = None,
    random: float | None = None,
    untrained: float | None = None,
    title: str = "CV of simplex volumes",
) -> Figure:
    """Histogram of the CVs of matrices, with lines at their mean and at what it is to be compared with.

    The spread holds the error of each CV's own estimate beside the difference between matrices. A CV that is not
    finite, as of points that all coincide, is left out and counted in the legend.

    Args:
        cvs: (N,), a CV a matrix, see :func:`eigenscope.geometry.volume_cv`.
        target: that training aims at.
        random: that of independent uniform unit points, :func:`eigenscope.geometry.volume_cv`.
        untrained: mean of the network before training.
        title: of the figure.

    Raises:
        ValueError: ``cvs`` is not (N,), or a line is not finite.
    """
    from matplotlib.figure import Figure

    if cvs.ndim != 1:
        raise ValueError(f"cvs must be (N,), got {tuple(cvs.shape)}")
    for name, value in (("target", target), ("random", random), ("untrained", untrained)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite or None, got {value}")
    values = cvs.detach().cpu().double()
    finite = values[values.isfinite()]
    left_out = len(values) - len(finite)
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    label = f"network: {len(finite):,} matrices" + (f", {left_out:,} more without a CV" if left_out else "")
    axes.hist(finite.numpy(), bins=_BINS, color=NETWORK["color"], alpha=0.4, label=label)
    lines = {
        "mean of the network": (float(finite.mean()) if len(finite) else None, NETWORK, 2.0),
        "target": (target, TARGET, 5.0),  # wide, so that it is seen below a baseline at the same place
        "random unit points": (random, RANDOM, 2.0),
        "untrained (step 0), mean": (untrained, UNTRAINED, 2.0),
    }
    for name, (value, look, width) in lines.items():
        if value is not None:
            axes.axvline(value, label=f"{name}: {value:.4f}", linewidth=width, **look)
    axes.set(title=title, xlabel="CV = standard deviation / mean of simplex volumes", ylabel="matrices")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
