"""Parameter counts of a module and its parts."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Counts:
    """Counts of trainable parameters, frozen parameters, and buffer entries."""

    trainable: int
    frozen: int
    buffers: int


def count(module: nn.Module) -> Counts:
    """Parameter count of a whole module; shared parameters count once."""
    return _counts(module.parameters(), module.buffers())


def count_parts(module: nn.Module) -> dict[str, Counts]:
    """Parameter counts of a network's top-level parts by name; its own parameters are under their own names.

    The network is the module, or where all parameters are in one part of it, as in the ``net`` of a Lightning module,
    that part. Parts that hold nothing are left out.
    """
    network, path = module, ""
    while not any(True for _ in network.parameters(recurse=False)):
        holders = [(name, part) for name, part in network.named_children() if any(True for _ in part.parameters())]
        if len(holders) != 1:
            break
        name, network = holders[0]
        path += f"{name}."
    own = {name: _counts([p], []) for name, p in network.named_parameters(recurse=False)}
    own |= {name: _counts([], [b]) for name, b in network.named_buffers(recurse=False)}
    parts = own | {name: count(part) for name, part in network.named_children()}
    return {path + name: counts for name, counts in parts.items() if counts != Counts(0, 0, 0)}


def _counts(parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> Counts:
    every = list(parameters)
    trainable = sum(parameter.numel() for parameter in every if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in every if not parameter.requires_grad)
    return Counts(trainable, frozen, sum(buffer.numel() for buffer in buffers))
