"""Lightning's checkpoints at moments at which it saves none, for runs whose end is not a place to go on from."""

import io
from typing import Any

import torch
from lightning.pytorch import Trainer

from eigenscope.adapters import Library, MissingNameError, report_fallback

_LIGHTNING = Library("lightning")
_NOT_EXTENDED = "a run that ended within an epoch, or updated batch norms, is not extended exactly"


def checkpoint_in_memory(trainer: Trainer) -> dict[str, Any] | None:
    """What ``trainer.save_checkpoint`` would write, on the CPU; None, and a note, where Lightning has no such name.

    All ranks take part.
    """
    try:
        make = _LIGHTNING.get(_LIGHTNING.get(trainer, "_checkpoint_connector"), "dump_checkpoint")
    except MissingNameError as missing:
        report_fallback(_NOT_EXTENDED, missing)
        return None
    file = io.BytesIO()
    torch.save(make(), file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def checkpoint_of_next_batch(trainer: Trainer) -> dict[str, Any] | None:
    """At the end of a batch that is not the last: the checkpoint that would be saved as the next one starts.

    Returns:
        None, and a note on stderr, where Lightning has no such name.
    """
    loop = trainer.fit_loop.epoch_loop
    try:
        batches = _LIGHTNING.get(loop, "batch_progress")
        stepped = _LIGHTNING.get(loop, "_batches_that_stepped")
    except MissingNameError as missing:
        report_fallback(_NOT_EXTENDED, missing)
        return None
    counts = (batches.total, batches.current)
    for count in counts:
        count.completed, count.ready = count.completed + 1, count.ready + 1
    loop._batches_that_stepped = stepped + 1
    found = checkpoint_in_memory(trainer)
    loop._batches_that_stepped = stepped
    for count in counts:
        count.completed, count.ready = count.completed - 1, count.ready - 1
    return found
