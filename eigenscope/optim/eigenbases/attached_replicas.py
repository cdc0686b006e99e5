"""Reference-precision replicas attached to optimizers, stepped by hooks."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from eigenscope.optim.eigenbases.factors import KroneckerFactors
from eigenscope.optim.eigenbases.precision_replica import ReferencePrecisionReplica, ReplicaPrecision
from eigenscope.optim.eigenbases.tracked_parameters import TrackedParameter


class AttachedReplicas:
    """A reference-precision replica for each optimizer of tracked parameters, stepped with it.

    See :class:`~eigenscope.optim.eigenbases.precision_replica.ReferencePrecisionReplica`.

    A gradient scaler that skips a step of the optimizer skips its replica's too.

    Args:
        tracked: parameters by name.
        precision: of the replicas; None keeps none.
        emulate: rounds as TF32 on devices without it.

    Raises:
        ValueError: a replica cannot be.
    """

    def __init__(
        self, tracked: Mapping[str, TrackedParameter], precision: ReplicaPrecision | None, emulate: bool = False
    ) -> None:
        self._tracked = {} if precision is None else dict(tracked)
        self._settings = {"watched": list(tracked), "precision": precision, "emulate": emulate}
        self._replicas = {
            optimizer: ReferencePrecisionReplica(
                optimizer, [w.parameter for w in tracked.values() if w.optimizer is optimizer], precision, emulate
            )
            for optimizer in dict.fromkeys(w.optimizer for w in self._tracked.values())
            if precision is not None
        }
        self._expecting: set[Optimizer] = set()
        self._hooks: list[Any] = []

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def differ(self) -> bool:
        """Whether any is at another precision than its optimizer."""
        return any(replica.differs for replica in self._replicas.values())

    def attach(self) -> None:
        """Follows the optimizers from now on."""
        self._hooks = [optimizer.register_step_post_hook(self._follow) for optimizer in self._replicas]

    def detach(self) -> None:
        """Leaves the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def expect_step(self) -> None:
        """Says that a step is about to be taken, which is followed once: optimizers built on others may call twice."""
        self._expecting = set(self._replicas)

    def factors(self) -> dict[str, KroneckerFactors]:
        """The replicas' live factors by name, of parameters that have had a step."""
        found = {name: self._replicas[w.optimizer].factors(w.parameter) for name, w in self._tracked.items()}
        return {name: factors for name, factors in found.items() if factors is not None}

    def state_dict(self) -> dict[str, Any]:
        """What the replicas are of, and their states."""
        return {**self._settings, "states": [replica.state_dict() for replica in self._replicas.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state if it is of the same parameters, precision and emulation."""
        if all(state[key] == value for key, value in self._settings.items()):
            for replica, saved in zip(self._replicas.values(), state["states"], strict=True):
                replica.load_state_dict(saved)

    def _follow(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer in self._expecting:  # its gradients are still those of the step
            self._expecting.remove(optimizer)
            self._replicas[optimizer].step()
