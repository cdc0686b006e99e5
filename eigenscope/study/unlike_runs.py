"""Whether runs that are compared were made with the same code, on the same machine, from the same data."""

from collections.abc import Mapping
from typing import Any


def unlike_runs(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each of commit, torch, hardware and data that is not the same in all runs.

    Args:
        cards: of the runs, by their names, as :class:`callbacks.RunCard` writes them; an empty one says nothing.
    """
    known = {run: _aspects(card) for run, card in cards.items() if card}
    sentences = []
    for aspect in next(iter(known.values()), {}):
        runs: dict[str, list[str]] = {}
        for run, aspects in known.items():
            runs.setdefault(aspects[aspect], []).append(run)
        if len(runs) > 1:
            told = "; ".join(f"{value} ({', '.join(names)})" for value, names in runs.items())
            sentences.append(f"Warning: these runs were not made with the same {aspect}: {told}")
    return sentences


def _aspects(card: Mapping[str, Any]) -> dict[str, str]:
    machine, data = card["hardware"], card["data"]
    return {
        "commit": str(card["code"]["commit"] or "unknown")[:12],
        "torch": str(card["versions"]["torch"]),
        "hardware": " + ".join([machine["cpu"], *(gpu["name"] for gpu in machine["gpus"])]),
        "data": ", ".join(f"{name} {content}" for name, content in sorted(data.items())),
    }
