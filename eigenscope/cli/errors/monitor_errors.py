"""Monitored metrics that nobody logs: one sentence for what Lightning raises at the first validation."""

import re
import traceback
from collections.abc import Iterable
from typing import Any

from eigenscope.cli.errors.suggestions import hint, nearest

_SAID = re.compile(
    r"Early stopping conditioned on metric `(?P<early>[^`]+)` which is not available"
    r"|`?ModelCheckpoint\(monitor='(?P<saver>[^']+)'\)`? could not find"
    r"|ReduceLROnPlateau conditioned on metric (?P<plateau>\S+) which is not available"
)
_WHO = {"early": "EarlyStopping", "saver": "ModelCheckpoint", "plateau": "ReduceLROnPlateau"}


def explain_monitor(error: BaseException) -> str | None:
    """One sentence for an error of Lightning about a metric that was not logged; None for any other error."""
    found = _SAID.search(str(error))
    if found is None:
        return None
    kind, name = next((kind, name) for kind, name in found.groupdict().items() if name is not None)
    return unlogged(_WHO[kind], name, _logged(error))


def unlogged(who: str, name: str, logged: Iterable[str]) -> str:
    """The sentence of a metric that is monitored and not logged, with the nearest of those that are."""
    known = sorted(set(logged))
    return f"{who} monitors {name}, which nothing has logged{hint(nearest(name, known), known, 'logged are')}"


def _logged(error: BaseException) -> list[str]:
    trainers: list[Any] = [frame.f_locals.get("trainer") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [str(name) for trainer in trainers for name in getattr(trainer, "callback_metrics", ())]
