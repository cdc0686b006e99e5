"""torchmetrics' private names: putting a metric back to an earlier state."""

from typing import Any

from torch import Tensor
from torchmetrics import Metric

from eigenscope.adapters import Library, MissingNameError, report_fallback

_TORCHMETRICS = Library("torchmetrics")


def restore_metric(metric: Metric, states: dict[str, Any], update_count: int) -> None:
    """Puts a metric back to an earlier state.

    Args:
        metric: the metric.
        states: its ``metric_state`` then, on its device; taken over, not copied, unless its dtype is another now.
        update_count: its ``update_count`` then. Where torchmetrics keeps it elsewhere it stays as it is, and stderr
            says so: sums and means are right all the same, a state that is itself a mean of updates is not.
    """
    for name, value in states.items():
        kept = getattr(metric, name)
        setattr(metric, name, value.to(kept.dtype) if isinstance(kept, Tensor) else value)
    try:
        _TORCHMETRICS.set(metric, "_update_count", update_count)
        _TORCHMETRICS.set(metric, "_computed", None)  # or the next compute() returned what it had returned before
    except MissingNameError as missing:
        report_fallback("metrics are put back without the number of their updates", missing)
