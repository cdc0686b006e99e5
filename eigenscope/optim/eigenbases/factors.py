"""Kronecker factors and eigenbases of a SOAP parameter."""

from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from eigenscope.optim.soap import is_soap
from eigenscope.optim.split import SplitOptimizer


class KroneckerFactors(NamedTuple):
    """Kronecker factors of an m×n weight, float32: the optimizer's own tensors, which its next step changes.

    Attributes:
        L: left factor, (m, m).
        R: right factor, (n, n).
        Q_L: eigenbasis of L, in columns, (m, m).
        Q_R: eigenbasis of R, (n, n).
    """

    L: Tensor
    R: Tensor
    Q_L: Tensor
    Q_R: Tensor


def preconditioner(optimizer: Optimizer, parameter: Tensor) -> Optimizer | None:
    """The optimizer that keeps, or will keep, Kronecker factors for a parameter.

    Args:
        optimizer: any; a :class:`SplitOptimizer` is looked into.
        parameter: compared by identity.

    Returns:
        A SOAP, or an optimizer whose state for the parameter has SOAP's entries; None if the parameter is not among
        its parameters, or its optimizer is of another kind.
    """
    if isinstance(optimizer, SplitOptimizer):
        parts = [part for part in (optimizer.matrix, optimizer.other) if part is not None]
        return next((found for part in parts if (found := preconditioner(part, parameter)) is not None), None)
    if not any(parameter is member for group in optimizer.param_groups for member in group["params"]):
        return None
    return optimizer if is_soap(optimizer) or kronecker_factors(optimizer, parameter) is not None else None


def kronecker_factors(optimizer: Optimizer, parameter: Tensor) -> KroneckerFactors | None:
    """The Kronecker factors of a parameter and their eigenbases.

    Args:
        optimizer: a SOAP, or a :class:`SplitOptimizer` with one.
        parameter: one of its parameters.

    Returns:
        Live tensors; None before the parameter's first step, or where no SOAP has it.
    """
    state = optimizer.state.get(parameter, {})
    if any(key not in state for key in KroneckerFactors._fields):
        return None
    return KroneckerFactors(*(state[key] for key in KroneckerFactors._fields))
