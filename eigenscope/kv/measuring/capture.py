"""Capture and replacement of queries, keys and values in a running network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.measuring.attention_context import ROLES, AttentionContext, AttentionHook, AttentionLayer, Role


class Captured(NamedTuple):
    """Captured queries, keys and values of one layer in one forward pass.

    Attributes:
        queries: (B, query heads, n, d), before rotation as the others.
        keys: (B, heads, T, d).
        values: (B, heads, T, d).
        context: what attention does with them.
        explained: False if the layer was seen to give something else than attention of these would.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    context: AttentionContext
    explained: bool


@contextmanager
def attach_to_layers(layers: Sequence[AttentionLayer], hook: AttentionHook) -> Iterator[dict[str, AttentionContext]]:
    """Attaches a hook to all layers while the block runs; yields their attention contexts by name."""
    with ExitStack() as stack:
        yield {layer.name: stack.enter_context(layer.attach(hook)) for layer in layers}


def replaced(
    layers: Sequence[AttentionLayer], decoded: Mapping[str, tuple[Tensor, Tensor]]
) -> AbstractContextManager[object]:
    """Puts other keys and values into layers while the block runs.

    Args:
        layers: in which to put them.
        decoded: name of a layer to keys and values, each (B, heads, T, d), before rotation; others keep their own.
    """

    def put(name: str, role: Role, x: Tensor) -> Tensor:
        if role == "queries" or name not in decoded:
            return x
        return decoded[name][ROLES.index(role) - 1].to(x.dtype)

    return attach_to_layers(layers, put)


def capture[T](layers: Sequence[AttentionLayer], run: Callable[[], T]) -> tuple[T, dict[str, Captured], dict[str, str]]:
    """Runs a network once and captures the queries, keys and values of its attention layers.

    Args:
        layers: to look at.
        run: makes one forward pass.

    Returns:
        What ``run`` returned; the layers that were seen, by name, detached and not copied; and for the others why not.
    """
    seen: dict[str, dict[Role, Tensor]] = {layer.name: {} for layer in layers}
    twice = set()

    def record(name: str, role: Role, x: Tensor) -> Tensor:
        if role in seen[name]:
            twice.add(name)
        seen[name][role] = x.detach()
        return x

    with attach_to_layers(layers, record) as contexts:
        result = run()
    captured, unreadable = {}, {}
    for name, tensors in seen.items():
        context = contexts[name]
        if len(tensors) < len(ROLES):
            unreadable[name] = context.unreadable or "the forward pass did not go through it"
        elif name in twice:
            unreadable[name] = "the forward pass went through it more than once"
        elif not all(x.isfinite().all() for x in tensors.values()):
            unreadable[name] = "its queries, keys or values are not finite"
        else:
            Q, K, V = (tensors[role] for role in ROLES)
            captured[name] = Captured(Q, K, V, context, context.explains(Q, K, V))
    return result, captured, unreadable


@contextmanager
def eager_inference(device: torch.device) -> Iterator[None]:
    """For forward passes beside a run: without gradient and compilation, the random state stays as it was.

    A compiled network may ignore hooks, and would be compiled anew for every hook.
    """
    with (
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager"),
    ):
        yield
