"""Base class of optimizers of 2-D parameters."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eigenscope.optim.common import keep_saved_dtypes


class MatrixOptimizer(Optimizer):
    """Base class of optimizers of 2-D parameters: checks them, steps with a closure or without, restores its state."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group.

        Raises:
            ValueError: it has a parameter that is not 2-D, or not real.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("param_names", [f"number {index}" for index in range(len(group["params"]))])
        for name, parameter in zip(names, group["params"], strict=True):
            if parameter.ndim != 2:
                raise ValueError(
                    f"params of {type(self).__name__} must be 2-D, got parameter {name} of shape "
                    f"{tuple(parameter.shape)}: route it elsewhere, as SplitOptimizer does"
                )
            if not parameter.is_floating_point():
                raise ValueError(
                    f"params of {type(self).__name__} must be real, got parameter {name} of {parameter.dtype}: "
                    "route it elsewhere, as SplitOptimizer does"
                )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step with the gradients there are; parameters without one and empty ones are left alone.

        Autocast does not reach inside.

        Args:
            closure: evaluated once, before the step, with gradients enabled.

        Returns:
            What the closure returned.

        Raises:
            ValueError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        device_type = self.param_groups[0]["params"][0].device.type
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            self._update_parameters()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, in the dtypes it was saved in."""
        super().load_state_dict(state_dict)
        keep_saved_dtypes(self, state_dict)

    @abstractmethod
    def _update_parameters(self) -> None: ...

    def _with_gradients(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Parameters that are to be updated, their gradients in float32, and their groups."""
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for parameter, _ in pairs:
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"gradients of {type(self).__name__} must be dense, got {parameter.grad.layout} of shape "
                    f"{tuple(parameter.shape)}: route its parameter elsewhere, as SplitOptimizer does"
                )
        for parameter, group in pairs:
            if parameter.grad is not None and parameter.numel():
                yield parameter, parameter.grad.float(), group
