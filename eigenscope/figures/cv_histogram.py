"""Histogram of the CV (coefficient of variation) of simplex volumes over matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from eigenscope.figures.palette import NETWORK, RANDOM, TARGET, UNTRAINED

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.figure import Figure

_BINS = 25


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
