"""Base class of optimizers of 2-D parameters."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from eigenscope.optim.common import keep_saved_dtypes


class MatrixOptimizer(Optimizer):
    """Base class of optimizers of 2-D parameters: checks them, steps with a closure or without, restores its state."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group.

        Raises:
            ValueError: it has a parameter that is not 2-D.
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

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step with the gradients there are; parameters without one are left alone.

        Args:
            closure: evaluated once, before the step, with gradients enabled.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._update_parameters()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, in the dtypes it was saved in."""
        super().load_state_dict(state_dict)
        keep_saved_dtypes(self, state_dict)

    @abstractmethod
    def _update_parameters(self) -> None: ...
