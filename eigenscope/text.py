"""Text formatting: tables and durations."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns: the first to the left, the others to the right, a rule under the header."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(cells))
        return "  ".join([first, *others])

    return "\n".join([line(header), "-" * len(line(header)), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as they stand: the first to the left, the others to the right."""
    widths = [max(3, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(cells))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: ``4:05``, ``1:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def abbreviate_names(names: Sequence[str]) -> str:
    """The first three names, and how many there are beyond."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more
