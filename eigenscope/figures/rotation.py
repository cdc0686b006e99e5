"""Figures of eigenbasis rotation: angles over steps, eigenvalues, and overlap of two bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito's
_FLOOR_DEG = 1e-3  # float32 bases know no smaller angles
_FEW = 60  # points, which are marked


def angle_figure(
    sides: Mapping[str, Mapping[str, Tensor]], k: int, spikes: Sequence[int] = (), title: str = "Eigenbasis rotation"
) -> Figure:
    """Angles to each reference against steps, a panel a side, on a log scale from 0.001° (or less) to 90°.

    Args:
        sides: side to reference to (N, 3): step, top-1 and top-k angle in degrees, steps ascending. A row with a NaN
            breaks the curve.
        k: of the top-k angle.
        spikes: steps with a spike of the gradient, marked if the curves reach them.
        title: of the figure.

    Raises:
        ValueError: there is no side, or a curve is not (N, 3).
    """
    figure, panels = _panels(sides, title)
    references = list(dict.fromkeys(reference for curves in sides.values() for reference in curves))
    for axes, (side, curves) in zip(panels, sides.items(), strict=True):
        for reference, curve in curves.items():
            steps, *angles = _columns(f"sides[{side!r}][{reference!r}]", curve, 3).T
            colour = _COLOURS[references.index(reference) % len(_COLOURS)]
            for values, line, name in zip(angles, ("--", "-"), ("top-1", f"top-{k}"), strict=True):
                axes.plot(
                    steps,
                    np.maximum(values, _FLOOR_DEG),
                    label=f"{reference}, {name}",
                    color=colour,
                    linestyle=line,
                    marker="." if len(steps) <= _FEW else None,
                    linewidth=1.4,
                )
        _mark(axes, spikes)
        ticks = (_FLOOR_DEG, 0.01, 0.1, 1, 10, 90)
        axes.set_yscale("log")
        axes.set_ylim(_FLOOR_DEG * 0.7, 130)
        axes.set_yticks(ticks, [f"≤ {_FLOOR_DEG:g}°", *(f"{tick:g}°" for tick in ticks[1:])])
        axes.minorticks_off()
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set(title=side)
    panels[0].set_ylabel("angle to the reference")
    _legend(figure, panels)
    return figure


def eigenvalue_figure(
    sides: Mapping[str, Tensor],
    ranks: Mapping[str, Sequence[int]],
    spikes: Sequence[int] = (),
    title: str = "Eigenvalues of the factors",
) -> Figure:
    """Eigenvalues of chosen ranks against steps, a panel a side, on a log scale; those not above zero are left out.

    Args:
        sides: side to (N, 1 + r): step and r eigenvalues, steps ascending.
        ranks: side to the r ranks, 1 the largest.
        spikes: steps with a spike of the gradient, marked if the curves reach them.
        title: of the figure.

    Raises:
        ValueError: there is no side, or a curve is not (N, 1 + r).
    """
    figure, panels = _panels(sides, title)
    everywhere = sorted({rank for chosen in ranks.values() for rank in chosen})
    for axes, (side, curve) in zip(panels, sides.items(), strict=True):
        steps, *values = _columns(f"sides[{side!r}]", curve, 1 + len(ranks[side])).T
        for rank, eigenvalues in zip(ranks[side], values, strict=True):
            axes.plot(
                steps,
                np.where(eigenvalues > 0, eigenvalues, np.nan),
                label=f"rank {rank}",
                color=_COLOURS[everywhere.index(rank) % len(_COLOURS)],
                marker="." if len(steps) <= _FEW else None,
                linewidth=1.4,
            )
        _mark(axes, spikes)
        axes.set_yscale("log")
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set(title=side)
    panels[0].set_ylabel("eigenvalue estimate, diag(QᵀAQ)")
    _legend(figure, panels)
    return figure


def overlap_figure(
    sides: Mapping[str, Tensor], sizes: Mapping[str, int], reference: str, title: str = "Overlap of eigenbases"
) -> Figure:
    """Heat maps of |QᵀQ_ref|, a panel a side: a diagonal where nothing turned, grey all over where everything did.

    Colours go with the root of the overlap, so that small ones are seen; what is not finite is magenta.

    Args:
        sides: side to (m, m) overlaps in [0, 1], see :func:`eigenscope.optim.eigenbases.rotation.block_overlap`.
        sizes: side to the number of eigenvectors, m or more.
        reference: what the reference is called.
        title: of the figure.

    Raises:
        ValueError: there is no side, or an overlap is not square.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    figure, panels = _panels(sides, title, height=4.6, width=10)
    colours = colormaps["Greys"].with_extremes(bad="#FF00FF")
    image = None
    for axes, (side, overlap) in zip(panels, sides.items(), strict=True):
        if overlap.ndim != 2 or overlap.shape[0] != overlap.shape[1]:
            raise ValueError(f"sides[{side!r}] must be (m, m), got {tuple(overlap.shape)}")
        n = sizes[side]
        image = axes.imshow(
            np.ma.masked_invalid(overlap.detach().cpu().double().numpy()),
            norm=PowerNorm(0.5, 0, 1),
            cmap=colours,
            interpolation="nearest",
            extent=(0.5, n + 0.5, n + 0.5, 0.5),
        )
        blocks = "" if len(overlap) == n else f", in blocks of {-(-n // len(overlap))}"
        axes.set(title=f"{side}: {n} eigenvectors{blocks}", xlabel=f"rank in {reference}")
    panels[0].set_ylabel("rank now")
    if image is not None:
        figure.colorbar(image, ax=panels, label="overlap", shrink=0.85, ticks=(0, 0.01, 0.1, 0.25, 0.5, 1))
    return figure


def _panels(sides: Mapping[str, object], title: str, height: float = 5, width: float = 11) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    if not sides:
        raise ValueError("sides must have at least one side, got none")
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, len(sides), squeeze=False)[0])


def _columns(name: str, curve: Tensor, count: int) -> np.ndarray:
    if curve.ndim != 2 or curve.shape[1] != count:
        raise ValueError(f"{name} must be (N, {count}), got {tuple(curve.shape)}")
    return curve.detach().cpu().double().numpy()


def _mark(axes: Axes, spikes: Sequence[int]) -> None:
    """A line at every spike within what the curves cover, or one step before it."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    covered = [x for line in axes.lines for x in np.asarray(line.get_xdata())]
    for spike in spikes:
        if covered and min(covered) - 1 <= spike <= max(covered):
            axes.axvline(spike, color="black", linestyle=":", linewidth=1.2, label="gradient spike", zorder=0)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One entry a name, of all panels together, in two rows."""
    entries: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=-(-len(entries) // 2), fontsize=9
        )
