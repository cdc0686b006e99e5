"""What is in TensorBoard's event files."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def board_events(files: Iterable[Path], step: int, until: float = math.inf) -> list[Any]:
    """The events from a step on, in the order in which they were logged, without those that a restart made forgotten.

    Args:
        files: event files, in order of time.
        step: the first.
        until: seconds since 1970; what was logged later is passed over, restarts too.

    Returns:
        Protocol buffers with step, time and values, each of which has a tag.
    """
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]  # slow to load
        LegacyEventFileLoader,
    )
    from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]

    kept: list[Any] = []
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            if event.wall_time > until:
                continue
            if event.session_log.status == SessionLog.START:
                kept = [other for other in kept if other.step < event.step]
            elif event.HasField("summary") and event.step >= step:
                kept.append(event)
    return kept
