"""Check that the callbacks of a trainer have distinct state keys in a checkpoint."""

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden


def check_distinct(callbacks: Iterable[Callback]) -> None:
    """Refuses two callbacks that keep their state under one key; Lightning does so too, but in words for programmers.

    Args:
        callbacks: those of a configuration.

    Raises:
        ValueError: there are such two.
    """
    taken: set[str] = set()
    for callback in callbacks:
        if not is_overridden("state_dict", callback, parent=Callback):
            continue
        if callback.state_key in taken:
            raise ValueError(
                f"trainer.callbacks must not hold {type(callback).__name__} twice for the same thing, got two that "
                f"keep their state as {callback.state_key}: leave one out"
            )
        taken.add(callback.state_key)
