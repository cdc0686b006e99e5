"""Run metadata as Markdown, for TensorBoard's TEXT page."""

from collections.abc import Iterable, Mapping
from typing import Any

from eigenscope.results.run_metadata import RunMetadata
from eigenscope.text import duration, markdown_table

DIFFERS = "⚠"


def card_text(card: Mapping[str, Any]) -> str:
    """Run metadata as Markdown, without configuration and routing, which are long; settings that differ first.

    Args:
        card: as :class:`eigenscope.callbacks.RunMetadataCallback` writes it.
    """
    settings = sorted(card["settings"], key=lambda setting: not setting["differs"])
    start, code, machine = card["start"], card["code"], card["hardware"]
    tree = {True: "clean tree", False: "tree with changes", None: "state of the tree unknown"}[code["clean"]]
    parameters = card["parameters"]
    rows = [
        [name, *(f"{counts[kind]:,}" for kind in ("trainable", "frozen", "buffers"))]
        for name, counts in [*parameters["parts"].items(), ("total", parameters["total"])]
    ]
    gpus = [f"{gpu['name']}, {_gibibytes(gpu['memory'])}" for gpu in machine["gpus"]]
    where = {
        "started": start["time"],
        "at step": start["step"],
        "command": start["command"],
        **{f"changed {key}": f"{old} → {new}" for key, (old, new) in start.get("allowed", {}).items()},
        "commit": None if code["commit"] is None else f"{code['commit']}, {tree}",
        "repository": code["repository"],
        "CPU": f"{machine['cpu']}, {machine['cores']} cores",
        "memory": _gibibytes(machine["memory"]),
        "GPUs": "; ".join(gpus) or "none",
    }
    return "\n\n".join(
        [
            "### Asked and live",
            markdown_table(
                ["setting", "asked", "live", ""],
                [[_cell(s["name"]), _cell(s["asked"]), _cell(s["live"]), DIFFERS * s["differs"]] for s in settings],
            ),
            "### Parameters",
            markdown_table(["part", "trainable", "frozen", "buffers"], rows),
            "### Data",
            _pairs("set", "content", card["data"].items()),
            "### Start",
            _pairs("what", "value", where.items()),
            "### Versions",
            _pairs("package", "version", card["versions"].items()),
        ]
    )


def outcome_text(record: RunMetadata) -> str:
    """How the run ended and what came of it."""
    rows: dict[str, Any] = {"outcome": record.outcome}
    if record.reason:
        rows["because"] = record.reason
    rows["duration"] = duration(record.seconds)
    if record.samples_per_second is not None:
        rows["training samples per second"] = f"{record.samples_per_second:,.1f}"
    rows |= {f"peak memory, {device}": _gibibytes(size) for device, size in record.peak_memory.items()}
    if (result := record.result) is not None:
        value, epoch = result.best
        score = result.score
        rows[f"best {score.name}"] = f"{score.text(value)}{score.unit} at epoch {epoch}"
        rows[f"last {score.name}"] = f"{score.text(result.last)}{score.unit}"
        rows |= {name: f"{figure:.6g}" for name, figure in result.test.items()}
    rows |= {f"earlier start {i}": f"{s['time']}, step {s['step']}" for i, s in enumerate(record.resumed, start=1)}
    return _pairs("what", "value", rows.items())


def code_block(text: str) -> str:
    """Text as it stands, in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _pairs(name: str, value: str, rows: Iterable[tuple[str, Any]]) -> str:
    return markdown_table([name, value], [[_cell(key), _cell(entry)] for key, entry in rows])


def _cell(value: Any) -> str:
    """One line without the sign that ends a cell."""
    return "–" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def _gibibytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 2**30:.2f} GiB"
