"""Reference-precision replica: the same gradients through a preconditioner at a second matmul precision."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy as shallow_copy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from eigenscope.linalg import emulate_tf32
from eigenscope.optim.eigenbases.factors import KroneckerFactors, kronecker_factors
from eigenscope.precision import has_tf32

ReplicaPrecision = Literal["highest", "high"]

_PRECISIONS = ("fp32_matmul_prec", "qr_fp32_matmul_prec")


class ReferencePrecisionReplica:
    """Keeps the factors that an optimizer such as SOAP would have at another matmul precision, for some parameters.

    It is the optimizer itself once more, with its settings, over copies of the parameters: begun from the optimizer's
    state and stepped with the same gradients, at its own precision. Neither the optimizer nor its parameters are
    touched. For an m×n parameter it holds as many numbers as the optimizer's state and the parameter together,
    2m² + 2n² + 3mn, and a step costs as much as the optimizer's for that parameter.

    Args:
        optimizer: which steps the parameters, with both precisions among its attributes.
        parameters: 2-D, some of its own.
        precision: of the replica, whatever the optimizer's is.
        emulate: rounds the replica's products as TF32 where the device has none, see
            :func:`eigenscope.linalg.emulate_tf32`.

    Attributes:
        differs: whether the optimizer itself computes at another precision.

    Raises:
        ValueError: the optimizer has no precisions, its weight decay changes the gradients in place, or ``"high"`` is
            the same as ``"highest"``.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[Tensor], precision: ReplicaPrecision, emulate: bool = False
    ) -> None:
        lacking = [name for name in _PRECISIONS if not hasattr(optimizer, name)]
        if lacking:
            raise ValueError(
                f"replica_precision needs {' and '.join(lacking)}, which {type(optimizer).__name__} has not"
            )
        decays = any(group.get("weight_decay") for group in optimizer.param_groups)
        if decays and getattr(optimizer, "weight_decay_method", None) == "l2":  # emerging-optimizers' own SOAP has it
            raise ValueError(
                "replica_precision needs a weight_decay_method that leaves gradients as they are, "
                f"{type(optimizer).__name__} has 'l2'"
            )
        for device in {parameter.device for parameter in parameters}:
            if precision == "high" and not emulate and not has_tf32(device):
                raise ValueError(
                    f"replica_precision 'high' is 'highest' on {device}, which has no TF32, unless emulate"
                )
        rounds = precision == "high"
        emulates = getattr(optimizer, "emulate_tf32", False)
        self.differs = any(
            rounds != (getattr(optimizer, name) != "highest" and (emulates or has_tf32(parameter.device)))
            for name in _PRECISIONS
            for parameter in parameters
        )
        self._optimizer = optimizer
        self._emulate = emulate
        self._copies = {parameter: parameter.detach().clone() for parameter in parameters}
        self._replica: Optimizer = _replica(optimizer, dict.fromkeys(_PRECISIONS, precision))
        for parameter, copy in self._copies.items():
            if parameter in optimizer.state:
                self._replica.state[copy] = _cloned(optimizer.state[parameter], copy.device)

    def step(self) -> None:
        """Takes the step that the optimizer has just taken, or is about to take, with the gradients there are."""
        groups = []
        for group in self._optimizer.param_groups:  # anew, as schedules change their settings
            mine = [self._copies[parameter] for parameter in group["params"] if parameter in self._copies]
            if mine:
                groups.append({**group, "params": mine})
        self._replica.param_groups = groups
        for parameter, copy in self._copies.items():
            copy.grad = parameter.grad
        try:
            with emulate_tf32() if self._emulate else nullcontext():
                # not the method of the instance, which a schedule binds to the optimizer it was made for
                type(self._replica).step(self._replica)
        finally:
            for copy in self._copies.values():
                copy.grad = None

    def factors(self, parameter: Tensor) -> KroneckerFactors | None:
        """The replica's live factors and eigenbases, None before a first step."""
        return kronecker_factors(self._replica, self._copies[parameter])

    def state_dict(self) -> list[dict[str, Any]]:
        """Of each parameter in order, its copy and the state of its replica; tensors are the live ones."""
        return [{"copy": copy, "state": dict(self._replica.state.get(copy, {}))} for copy in self._copies.values()]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restores the state instead of from the optimizer's state."""
        for copy, saved in zip(self._copies.values(), state, strict=True):
            copy.copy_(saved["copy"])
            self._replica.state.pop(copy, None)
            if saved["state"]:
                self._replica.state[copy] = _cloned(saved["state"], copy.device)


def _replica(optimizer: Optimizer, settings: Mapping[str, Any]) -> Optimizer:
    """The same class with the same attributes, but no parameters, state or hooks; its constructor may not take them."""
    replica: Optimizer = shallow_copy(optimizer)  # as torch unpickles it: without hooks, and most other attributes
    replica.state = defaultdict(dict)
    replica.param_groups = []
    for name, value in {**vars(optimizer), **vars(replica), **settings}.items():
        setattr(replica, name, value)
    return replica


def _cloned(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in state.items()}
