"""Tracked parameters: their selection, and the optimizer that holds their Kronecker factors."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from eigenscope.optim.eigenbases.factors import preconditioner
from eigenscope.optim.split import SplitOptimizer
from eigenscope.text import abbreviate_names

_NET = "net."


class TrackedParameter(NamedTuple):
    """A parameter with its optimizers.

    Attributes:
        parameter: m×n.
        optimizer: the one that keeps Kronecker factors for it.
        outer: the one that training steps: the same, or a :class:`~eigenscope.optim.SplitOptimizer` that holds it.
    """

    parameter: Tensor
    optimizer: Optimizer
    outer: Optimizer


def tracked_parameters(
    named: Iterable[tuple[str, Tensor]],
    optimizers: Sequence[Optimizer],
    patterns: Sequence[str] | None = None,
    largest: int = 4,
) -> dict[str, TrackedParameter]:
    """Chooses parameters for which an optimizer keeps Kronecker factors.

    Args:
        named: a module's parameters.
        optimizers: that training steps.
        patterns: of names, with or without the leading ``net.``; ``*`` stands for dots too. A pattern with a wildcard
            takes those of its matches that have factors; a name without wildcards must have them. None takes the
            ``largest`` by number of entries, of equal ones the first.
        largest: how many, or all there are.

    Returns:
        By name, which is that in the network, without the leading ``net.``, unless two would then be alike. Empty if
        no optimizer keeps factors for any parameter.

    Raises:
        ValueError: a pattern matches nothing, or nothing that has factors while others have; the message names it and
            the optimizer of its matches.
    """
    everything = _short_names(dict(named))
    for pattern in patterns or ():
        if not any(_matches(name, pattern) for name in everything):
            raise ValueError(
                f"parameters: {pattern!r} matches no parameter; there are {abbreviate_names(list(everything))}"
            )
    handled = {}
    for name, parameter in everything.items():
        for outer in optimizers:
            inner = preconditioner(outer, parameter)
            if inner is not None:
                handled[name] = TrackedParameter(parameter, inner, outer)
    if not handled:
        return {}
    if patterns is None:
        by_size = sorted(handled, key=lambda name: -handled[name].parameter.numel())  # stable: the first of equal ones
        return {name: handled[name] for name in by_size[:largest]}
    for pattern in patterns:
        matches = [name for name in everything if _matches(name, pattern)]
        if not any(name in handled for name in matches):
            name = matches[0]
            raise ValueError(
                f"parameters: {pattern!r} is {abbreviate_names(matches)}, for which no Kronecker factors are kept: "
                f"it is trained by {_trained_by(everything[name], optimizers)}; factors are kept for "
                f"{abbreviate_names(list(handled))}"
            )
    return {name: found for name, found in handled.items() if any(_matches(name, pattern) for pattern in patterns)}


def _short_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    short = {name.removeprefix(_NET): parameter for name, parameter in named.items()}
    return short if len(short) == len(named) else dict(named)


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(candidate, pattern) for candidate in (name, _NET + name))


def optimizer_parts(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Optimizers, and in the place of a split one its two."""
    return [
        part
        for outer in optimizers
        for part in ((outer.matrix, outer.other) if isinstance(outer, SplitOptimizer) else (outer,))
        if part is not None
    ]


def check_comparable(tracked: Mapping[str, TrackedParameter], k: int) -> None:
    """Checks that parameters are stepped together, and have k eigenvectors on either side.

    Raises:
        ValueError: they have different optimizers, or k exceeds a smaller dimension; the message names them.
    """
    if len({found.outer for found in tracked.values()}) > 1:
        owners = ", ".join(f"{name} ({type(found.outer).__name__})" for name, found in tracked.items())
        raise ValueError(f"parameters must be of one optimizer, choose among {owners}")
    for name, found in tracked.items():
        shape = tuple(found.parameter.shape)
        if k > min(shape):
            raise ValueError(f"k must be at most {min(shape)}, the smaller dimension of {name} {shape}, got {k}")


def _trained_by(parameter: Tensor, optimizers: Sequence[Optimizer]) -> str:
    for part in optimizer_parts(optimizers):
        if any(parameter is member for group in part.param_groups for member in group["params"]):
            return type(part).__name__
    return "no optimizer"
