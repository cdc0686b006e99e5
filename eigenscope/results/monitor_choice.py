"""Choice of the metric that a run is judged by, where nobody has named one that it logs."""

import re
from collections.abc import Iterable

from eigenscope.results.run_result import MonitoredMetric, is_of_validation

_HIGHER_IS_BETTER = "acc|accuracy|f1|auc|auroc|recall|precision|iou|dice|psnr|ssim|r2|bleu|score"
_BEST_HIGH = re.compile(rf"(?:^|[/_.-])(?:{_HIGHER_IS_BETTER})\d*(?:$|[/_.-])", re.IGNORECASE)
_ACCURACY = re.compile(r"(?:^|[/_.-])acc(?:uracy)?$", re.IGNORECASE)
_LOSS = re.compile(r"(?:^|[/_.-])loss$", re.IGNORECASE)


def choose_monitor(names: Iterable[str]) -> MonitoredMetric | None:
    """The metric that says most about a run: an accuracy of the validation, else its loss, else the loss in training.

    Args:
        names: of the metrics that an epoch has logged.

    Returns:
        None if there is no metric of the validation and no loss. What is named like an accuracy or another figure of
        merit is best when largest, anything else when smallest.
    """
    ordered = sorted(names, key=lambda name: (len(name), name))
    validated = [name for name in ordered if is_of_validation(name)]
    trained = [name for name in ordered if not is_of_validation(name) and not name.endswith("_step")]
    for pattern, among in ((_ACCURACY, validated), (_LOSS, validated), (re.compile(""), validated), (_LOSS, trained)):
        found = next((name for name in among if pattern.search(name)), None)
        if found is not None:
            return MonitoredMetric(found, "max" if _BEST_HIGH.search(found) else "min", percent=False)
    return None
