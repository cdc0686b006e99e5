"""Composite optimizer: hidden matrices to one optimizer, all other parameters to another."""

import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eigenscope.adapters.torch_names import load_state_hooks
from eigenscope.optim.common import filter_groups, keep_saved_dtypes, named_groups, params_by_name
from eigenscope.optim.routing import MATRIX, Route, reasons_against
from eigenscope.text import abbreviate_names

NOT_MATRICES = (
    "*embed*",
    "*token*",
    "*position*",
    "head.*",
    "*.head.*",
    "head_*",
    "*.head_*",
    "*_head.*",
    "*classifier*",
    "*encoder.0.weight",  # an autoencoder's embedding of patches, and the ends of its decoder
    "*decoder.?.weight",
    "*decoder.??.weight",
    "*bias",  # 2-D where several networks are stacked
    "*.gate",
)
"""Names of 2-D parameters that are no hidden layers: embeddings, tokens, positions, heads, outputs, stacked biases."""


class SplitOptimizer(Optimizer):
    """Composite optimizer: hidden weight matrices go to one optimizer, all other parameters to another.

    A parameter goes to ``matrix`` if it is 2-D and real, no pattern of ``exclude`` matches its name, no side is longer
    than ``max_side``, and it is not shaped as its own bias, as the gains of stacked norms are. SOAP, REKLS and Muon
    take nothing but matrices, and are not meant for embeddings and outputs.

    To schedules, gradient scalers, gradient clipping, Lightning and checkpoints it is an ordinary optimizer:
    ``param_groups`` holds the groups of both, the very dictionaries, first those of ``matrix``; ``state`` is a view of
    the states of both; ``defaults`` is what both have, so a schedule that cycles momentum works if both have
    ``betas``, or both ``momentum``, and torch refuses it otherwise. A step runs the closure once, then steps both.
    Each group carries a ``name`` for those who log learning rates, and the class of its ``optimizer``, by which
    ``load_state_dict`` knows a state that was made otherwise. Loading keeps the dtypes of the saved state.

    Attributes:
        matrix: the optimizer of the matrices.
        other: the other; None where nothing is left for it.
        routes: every parameter's way and the reason for it; see :func:`eigenscope.optim.routing_table`.

    Args:
        params: pairs (name, parameter), as ``module.named_parameters()`` gives them, or groups of them: dictionaries
            with such pairs under ``"params"`` and options for both optimizers under other keys.
        matrix: makes the optimizer of the matrices from such pairs or groups.
        other: makes the other.
        exclude: patterns of names of 2-D parameters that are not for ``matrix``; ``*`` stands for dots too. Given, it
            replaces :data:`NOT_MATRICES`.
        max_side: the longest side of a matrix for ``matrix``, whose cost may grow with its cube; None is any.
        lr: learning rate of both in place of their own, save of groups that have one; None leaves each its own.
        weight_decay: of both, in the same way.

    Raises:
        ValueError: parameters have no names or share one, none is for ``matrix``, a pattern of ``exclude`` that is not
            in :data:`NOT_MATRICES` matches no name, an optimizer lacks an option that is set for both, or a number is
            out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        matrix: Callable[[Iterable[Any]], Optimizer],
        other: Callable[[Iterable[Any]], Optimizer],
        exclude: Sequence[str] = NOT_MATRICES,
        max_side: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        if max_side is not None and max_side < 1:
            raise ValueError(f"max_side must be at least 1 or None, got {max_side}")
        options = {key: value for key, value in {"lr": lr, "weight_decay": weight_decay}.items() if value is not None}
        for key, value in options.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{key} must be a finite number >= 0 or None, got {value}")
        groups = [{**options, **group} for group in named_groups(params)]
        parameters = params_by_name(groups)
        reasons = reasons_against(parameters, exclude, max_side)
        _check_exclude(exclude, parameters)
        _check_matrices(parameters, reasons)
        self.matrix = matrix(filter_groups(groups, lambda name: reasons[name] is None))
        left = filter_groups(groups, lambda name: reasons[name] is not None)
        self.other = other(left) if left else None
        parts = self._parts()
        for part in parts:
            for key in {key for group in groups for key in group} - {"params", "name"} - set(part.defaults):
                raise ValueError(f"{key} is set for both optimizers, but {type(part).__name__} has no such option")
        self.routes = tuple(
            Route(name, tuple(parameter.shape), type(parts[reasons[name] is not None]).__name__, reason or MATRIX)
            for (name, parameter), reason in zip(parameters.items(), reasons.values(), strict=True)
        )
        _label_groups(parts)
        shared = {key: value for key, value in self.matrix.defaults.items() if all(key in p.defaults for p in parts)}
        self._complete = False
        super().__init__([group for part in parts for group in part.param_groups], {**shared, **options})
        self._complete = True
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps both optimizers.

        Args:
            closure: evaluated once, before both, with gradients enabled.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, in the dtypes it was saved in.

        Raises:
            ValueError: it was made with another routing; the message names the difference.
        """
        state_dict = state_dict.copy()
        hooks_before, hooks_after = load_state_hooks(self)
        for before in hooks_before:
            state_dict = before(self, state_dict) or state_dict
        groups = list(state_dict["param_groups"])
        _check_routing(groups, self.param_groups)
        for part in self._parts():
            mine = [groups.pop(0) for _ in part.param_groups]
            members = {index for group in mine for index in group["params"]}
            states = {index: state for index, state in state_dict["state"].items() if index in members}
            part.load_state_dict({"state": states, "param_groups": mine})
            keep_saved_dtypes(part, {"state": states, "param_groups": mine})
        self._share()
        for after in hooks_after:
            after(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses.

        Raises:
            ValueError: always, once the optimizer is made.
        """
        if self._complete:
            raise ValueError("param_group cannot be added: a SplitOptimizer routes its params once, when it is made")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("defaults", "matrix", "other", "routes", "_complete")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _parts(self) -> tuple[Optimizer, ...]:
        return (self.matrix,) if self.other is None else (self.matrix, self.other)

    def _share(self) -> None:
        self.param_groups = [group for part in self._parts() for group in part.param_groups]
        self.state = _States(self._parts())  # type: ignore[assignment]  # torch's is a defaultdict


class _States(MutableMapping[Tensor, Any]):
    """The states of several optimizers as one mapping; each entry lives in the optimizer of its parameter."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts
        self._owners = {p: part for part in parts for group in part.param_groups for p in group["params"]}

    def __getitem__(self, parameter: Tensor) -> Any:
        return self._owners[parameter].state[parameter]

    def __setitem__(self, parameter: Tensor, state: Any) -> None:
        self._owners[parameter].state[parameter] = state

    def __delitem__(self, parameter: Tensor) -> None:
        del self._owners[parameter].state[parameter]

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in part.state for part in self._parts)

    def get(self, parameter: Tensor, default: Any = None) -> Any:
        if parameter not in self:  # asking for it would make an empty one
            return default
        return self[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        return chain.from_iterable(part.state for part in self._parts)

    def __len__(self) -> int:
        return sum(len(part.state) for part in self._parts)


def _label_groups(parts: Sequence[Optimizer]) -> None:
    for side, part in zip(("matrix", "other"), parts, strict=False):
        for index, group in enumerate(part.param_groups):
            own = group.get("name") or (str(index) if len(part.param_groups) > 1 else None)
            group["name"] = side if own is None else f"{side}/{own}"
            group["optimizer"] = type(part).__name__


def _check_exclude(exclude: Sequence[str], parameters: Iterable[str]) -> None:
    if isinstance(exclude, str):
        raise ValueError(f"exclude must be a list of patterns, got the string {exclude!r}")
    names = list(parameters)
    idle = [p for p in exclude if p not in NOT_MATRICES and not any(fnmatchcase(name, p) for name in names)]
    if idle:
        raise ValueError(
            f"exclude must match names of parameters, but {', '.join(idle)} matches none of: {abbreviate_names(names)}"
        )


def _check_matrices(parameters: dict[str, Tensor], reasons: dict[str, str | None]) -> None:
    if any(reason is None for reason in reasons.values()):
        return
    against: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        against.setdefault(str(reason), []).append(f"{name} {tuple(parameters[name].shape)}")
    found = "; ".join(f"{reason}: {abbreviate_names(names)}" for reason, names in against.items()) or "nothing"
    raise ValueError(f"params must have a matrix for the optimizer `matrix`, got {found}")


def _check_routing(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> None:
    """Checks that groups of a saved state are those of this optimizer."""
    if not all({"optimizer", "param_names"} <= set(group) for group in saved):
        raise ValueError("state_dict must be a SplitOptimizer's, got one whose groups do not name their optimizers")
    then, now = ({name: g["optimizer"] for g in groups for name in g["param_names"]} for groups in (saved, own))
    if differing := [name for name in now if then.get(name, now[name]) != now[name]]:
        first = differing[0]
        raise ValueError(
            f"state_dict has another routing: {abbreviate_names(differing)} "
            f"({first} went to {then[first]}, here to {now[first]})"
        )
    if then.keys() != now.keys():
        lacking, extra = ([name for name in a if name not in b] for a, b in ((now, then), (then, now)))
        raise ValueError(
            f"state_dict has other parameters: lacks {abbreviate_names(lacking)}, "
            f"has in excess {abbreviate_names(extra)}"
        )
    if [group["param_names"] for group in saved] != [group["param_names"] for group in own]:
        raise ValueError("state_dict has the same parameters in other groups or in another order")
