"""Ranges of numbers that no class of its own checks, or only after work is lost."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_SEEDS = (0, 2**32 - 1)
_COUNT, _NOT_NEGATIVE, _OR_ALL = (1, None), (0, None), (-1, None)

_OPTIONS: Mapping[tuple[str, ...], tuple[float, float | None]] = {
    ("seed_everything",): _SEEDS,
    **{
        ("trainer", name): bounds
        for name, bounds in {
            "accumulate_grad_batches": _COUNT,
            "check_val_every_n_epoch": _COUNT,
            "fast_dev_run": _NOT_NEGATIVE,
            "gradient_clip_val": _NOT_NEGATIVE,
            "limit_predict_batches": _NOT_NEGATIVE,
            "limit_test_batches": _NOT_NEGATIVE,
            "limit_train_batches": _NOT_NEGATIVE,
            "limit_val_batches": _NOT_NEGATIVE,
            "log_every_n_steps": _NOT_NEGATIVE,
            "max_epochs": _OR_ALL,
            "max_steps": _OR_ALL,
            "min_epochs": _NOT_NEGATIVE,
            "min_steps": _NOT_NEGATIVE,
            "num_nodes": _COUNT,
            "num_sanity_val_steps": _OR_ALL,
            "overfit_batches": _NOT_NEGATIVE,
            "reload_dataloaders_every_n_epochs": _NOT_NEGATIVE,
        }.items()
    },
}
_ABOVE_ZERO = {("trainer", "val_check_interval")}
_RATES = ("lr", "max_lr", "weight_decay", "swa_lrs")  # of a class, whatever it is


def number_fault(config: Mapping[str, Any]) -> tuple[list[str], Any, str] | None:
    """The first number of a resolved configuration that makes no sense.

    Args:
        config: of a subcommand, as nested dictionaries and lists.

    Returns:
        The parts of its key, its value, and what was expected instead; None if there is none.
    """
    return next(_faults(config, []), None)


def _faults(value: Any, path: list[str]) -> Iterator[tuple[list[str], Any, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _faults(item, [*path, key])
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _faults(item, [*path, str(number)])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        expected = _expected(value, path)
        if expected is not None:
            yield path, value, expected


def _expected(value: float, path: list[str]) -> str | None:
    """What was expected of a number; None if it is right."""
    key = tuple(path)
    name = next((part for part in reversed(path) if not part.isdecimal()), "")
    is_rate = "init_args" in path and name in _RATES
    low, high = (0, None) if is_rate else _OPTIONS.get(key, (None, None))
    if math.isnan(value):
        return "expected a number"
    if math.isinf(value) and (is_rate or "init_args" not in path):
        return "expected a finite number"
    if key in _ABOVE_ZERO and value <= 0:
        return "expected a number above 0"
    if low is not None and (value < low or (high is not None and value > high)):
        return f"expected a number from {low} to {high}" if high is not None else f"expected at least {low}"
    return None
