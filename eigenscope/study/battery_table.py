"""Which battery serves which noise."""

from collections.abc import Sequence

from torch import Tensor

from eigenscope.text import text_table


def battery_table(errors: Tensor, names: Sequence[str], mixtures: Sequence[Sequence[str]]) -> str:
    """Text: for every noise type the battery of smallest error, what it was trained on, and the median battery's error.

    Args:
        errors: (K, T), see :func:`eigenscope.nn.cross_evaluate`; what is not finite is never the best.
        names: of the T types.
        mixtures: of the K batteries.

    Raises:
        ValueError: the names or mixtures are not as many as columns and rows, or there is no battery.
    """
    if errors.ndim != 2 or not len(errors) or errors.shape != (len(mixtures), len(names)):
        raise ValueError(
            f"errors must be (K, T) with K >= 1 mixtures and T names, "
            f"got {tuple(errors.shape)}, {len(mixtures)} mixtures and {len(names)} names"
        )
    errors = errors.detach().cpu().double()
    rows = []
    for name, column in zip(names, errors.T, strict=True):
        finite = column.isfinite()
        if not finite.any():
            rows.append([name, "none", "", "", ""])
            continue
        best = int(column.where(finite, float("inf")).argmin())
        mixture = " + ".join(mixtures[best]) or "untrained"
        rows.append([name, str(best), mixture, f"{column[best]:.4g}", f"{column[finite].median():.4g}"])
    return text_table(["noise", "battery", "trained on", "MSE", "median MSE"], rows)
