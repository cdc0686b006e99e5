"""Whether a cell is as it should be: its metrics are those of its reference, or it was refused in one sentence."""

import math

import torch

from tests.matrix.cells import Cell, Outcome

EPS = {
    "32-true": torch.finfo(torch.float32).eps,
    "bf16-mixed": torch.finfo(torch.bfloat16).eps,
    "bf16-true": torch.finfo(torch.bfloat16).eps,
    "16-mixed": torch.finfo(torch.float16).eps,
    "16-true": torch.finfo(torch.float16).eps,
}
FACTOR = 8.0
"""A mean of continuous functions of the network's output, after two steps of which the second took the first's weights:
the output is rounded once, the weights once, and both pass a few layers and a difference of numbers of its size."""
SINGLE = 2e-3  # of two ranks, other workers and loggers in single precision: means over the shards in another order
COUNTED = ("acc", "acc5", "recall", "gap", "active_dimensions", "collapsed")
FLIPS = 0.5  # of four samples two may change sides where a network is untrained and all classes are alike
SAMPLED = (
    "train/loss_step",
    "geometry_",
    "cv_",
    "kv/",
    "kv_",
    "rotation/",
)  # of a rank's own batch, or of random matrices of its own

CHANGES = ("update/",)  # of weights in a step, over the rate: smaller than what half precision rounds off a weight


def disagreements(cell: Cell, outcome: Outcome, reference: Outcome) -> list[str]:
    """The metrics of a cell that are not its reference's to the rounding of its precision, one a line."""
    assert outcome.metrics is not None
    assert reference.metrics is not None
    found = []
    if outcome.steps != reference.steps:
        found.append(f"{outcome.steps} steps instead of {reference.steps}")
    if not outcome.saved:
        found.append("no checkpoint to resume from")
    others = outcome.metrics.keys() ^ reference.metrics.keys()
    if cell.logger == "none":  # for which LearningRateMonitor is left out, and a line says so
        others = {name for name in others if not name.startswith("lr-")}
    if cell.ranks == 1 and others:
        found.append(f"other metrics: {sorted(others)}")
    relative = max(FACTOR * EPS[outcome.used], SINGLE)
    for name in sorted(outcome.metrics.keys() & reference.metrics.keys()):
        value, expected = outcome.metrics[name], reference.metrics[name]
        figure = name.rpartition("/")[2]
        if cell.ranks > 1 and name.startswith(SAMPLED):
            continue
        if outcome.used in ("bf16-true", "16-true") and name.startswith(CHANGES):
            continue
        allowed = (FLIPS if figure in COUNTED else relative) * max(1.0, abs(expected))
        if math.isnan(value) != math.isnan(expected) or abs(value - expected) > allowed:
            found.append(f"{name} is {value:.6g}, in the reference {expected:.6g}")
    return found


def fault(cell: Cell, outcome: Outcome, reference: Outcome) -> str:
    """What is wrong with a cell, empty if nothing is.

    Args:
        cell: which.
        outcome: what became of it.
        reference: what became of ``cell.reference``.
    """
    if outcome.fault:
        return outcome.fault
    if outcome.sentence:
        return "" if "--trainer." in outcome.sentence else f"names no option of the trainer: {outcome.sentence}"
    if reference.metrics is None:
        return f"its reference has no metrics: {reference.sentence or reference.fault}"
    return "; ".join(disagreements(cell, outcome, reference))


def mark(cell: Cell, outcome: Outcome, reference: Outcome) -> str:
    """What the table says of a cell: ``yes``, ``as bf16-mixed``, ``refused`` or ``fault``."""
    if fault(cell, outcome, reference):
        return "fault"
    if outcome.sentence:
        return "refused"
    return "yes" if outcome.used == cell.precision else f"as {outcome.used}"
