"""Shadows that step when their optimizers do."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from eigenscope.optim.factors import KroneckerFactors
from eigenscope.optim.shadow import ShadowFactors, ShadowPrecision
from eigenscope.optim.watched import Watched


class AttachedShadows:
    """A :class:`~eigenscope.optim.shadow.ShadowFactors` for each optimizer of watched parameters, stepped with it.

    A gradient scaler that skips a step of the optimizer skips its shadow's too.

    Args:
        watched: parameters by name.
        precision: of the shadows; None keeps none.
        emulate: rounds as TF32 on devices without it.

    Raises:
        ValueError: a shadow cannot be.
    """

    def __init__(
        self, watched: Mapping[str, Watched], precision: ShadowPrecision | None, emulate: bool = False
    ) -> None:
        self._watched = {} if precision is None else dict(watched)
        self._settings = {"watched": list(watched), "precision": precision, "emulate": emulate}
        self._shadows = {
            optimizer: ShadowFactors(
                optimizer, [w.parameter for w in watched.values() if w.optimizer is optimizer], precision, emulate
            )
            for optimizer in dict.fromkeys(w.optimizer for w in self._watched.values())
            if precision is not None
        }
        self._expecting: set[Optimizer] = set()
        self._hooks: list[Any] = []

    def __len__(self) -> int:
        return len(self._shadows)

    @property
    def differ(self) -> bool:
        """Whether any is at another precision than its optimizer."""
        return any(shadow.differs for shadow in self._shadows.values())

    def attach(self) -> None:
        """Follows the optimizers from now on."""
        self._hooks = [optimizer.register_step_post_hook(self._follow) for optimizer in self._shadows]

    def detach(self) -> None:
        """Leaves the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def expect_step(self) -> None:
        """Says that a step is about to be taken, which is followed once: optimizers built on others may call twice."""
        self._expecting = set(self._shadows)

    def factors(self) -> dict[str, KroneckerFactors]:
        """The shadows' live factors by name, of parameters that have had a step."""
        found = {name: self._shadows[w.optimizer].factors(w.parameter) for name, w in self._watched.items()}
        return {name: factors for name, factors in found.items() if factors is not None}

    def state_dict(self) -> dict[str, Any]:
        """What the shadows are of, and their states."""
        return {**self._settings, "states": [shadow.state_dict() for shadow in self._shadows.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there if it is of the same parameters, precision and emulation."""
        if all(state[key] == value for key, value in self._settings.items()):
            for shadow, saved in zip(self._shadows.values(), state["states"], strict=True):
                shadow.load_state_dict(saved)

    def _follow(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer in self._expecting:  # its gradients are still those of the step
            self._expecting.remove(optimizer)
            self._shadows[optimizer].step()
