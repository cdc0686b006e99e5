"""Charts as plain data, and the TensorBoard dashboard (custom scalars) built from them."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

Layout = dict[str, dict[str, tuple[str, list[str]]]]
"""Section to title to ``Multiline`` or ``Margin`` with what TensorBoard reads there."""


@dataclass(frozen=True)
class Chart:
    """Curves that belong into one picture.

    Args:
        section: that the chart stands in.
        title: unique in its section; with the unit, if there is one.
        tags: of the scalars, one curve each.
        band: tags of the lower and the upper end of a band around the only curve; None draws none.

    Raises:
        ValueError: there are no tags, or there is a band around more than one curve.
    """

    section: str
    title: str
    tags: tuple[str, ...]
    band: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Checks the tags."""
        if not self.tags:
            raise ValueError(f"tags of chart {self.title!r} must name at least one scalar")
        if self.band is not None and len(self.tags) > 1:
            raise ValueError(f"band of chart {self.title!r} goes with one tag, got {len(self.tags)}: {self.tags}")


def train_and_val(title: str, leaf: str) -> Chart:
    """A metric in training beside the same one in validation: ``train/<leaf>`` and ``val/<leaf>``."""
    return Chart("Training and validation", title, (f"train/{leaf}", f"val/{leaf}"))


def present(charts: Iterable[Chart], logged: Collection[str]) -> list[Chart]:
    """The charts without the tags that are not among those logged; a chart without any is left out."""
    found = []
    for chart in charts:
        tags = tuple(tag for tag in chart.tags if tag in logged)
        band = chart.band if chart.band is not None and all(tag in logged for tag in chart.band) else None
        if tags:
            found.append(replace(chart, tags=tags, band=band))
    return found


def joined(charts: Iterable[Chart]) -> list[Chart]:
    """One chart for each section and title, of all their curves; a band is kept only around a single curve."""
    found: dict[tuple[str, str], Chart] = {}
    for chart in charts:
        first = found.setdefault((chart.section, chart.title), chart)
        tags = tuple(dict.fromkeys((*first.tags, *chart.tags)))
        band = (first.band or chart.band) if len(tags) == 1 else None
        found[chart.section, chart.title] = replace(first, tags=tags, band=band)
    return list(found.values())


def dashboard(charts: Iterable[Chart], prefix: str = "") -> Layout:
    """The layout of TensorBoard's custom scalars: sections and charts in the order in which they first occur.

    Charts of one section and title become one, see :func:`joined`. TensorBoard reads the tags of curves as regular
    expressions that have to match from a tag's beginning, so they are escaped and closed with ``$``; those of a chart
    with a band it takes as they are.

    Args:
        charts: whose tags are all logged, see :func:`present`.
        prefix: put before every tag, as a logger does.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.
    """
    layout: Layout = {}
    for chart in joined(charts):
        names = [prefix + tag for tag in (*chart.tags, *(chart.band or ()))]
        content = ("Margin", names) if chart.band else ("Multiline", [f"^{re.escape(name)}$" for name in names])
        layout.setdefault(chart.section, {})[chart.title] = content
    return layout
