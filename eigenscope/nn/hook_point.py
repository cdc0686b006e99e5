"""Hook points: the one way to observe, or replace, a tensor inside a running network.

A network passes each tensor worth observing through a :class:`HookPoint`, an identity with a name (its path in the
module tree). Whoever wants the tensor attaches a hook for the length of a ``with`` block::

    with observe(net, "blocks.*.attention.keys") as seen:
        net(images)
    seen["blocks.0.attention.keys"]  # (B, heads, tokens, head width)

:func:`attach_hooks` is the same with a function of one's own, which may put another tensor in the place of the one it
sees. With no hook a hook point costs one call, and nothing in a compiled network: ``torch.compile`` guards on the
hooks, so it recompiles when the first one arrives and returns to the former graph when the last one leaves. Forward
hooks of torch are not used because a compiled network may ignore one that is registered after compilation.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor, nn


class HookPoint(nn.Module):
    """Returns its input, or what the attached hooks make of it, in the order they came.

    A hook is a function from tensor to tensor. It sees the tensor as the network does, with its gradient history, and
    what it returns replaces it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hooks: tuple[Callable[[Tensor], Tensor], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Passes ``x`` (any shape) on."""
        for hook in self.hooks:
            x = hook(x)
        return x

    @contextmanager
    def attach(self, hook: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Attaches a hook while the block runs."""
        own = partial(hook)  # the same hook may be attached twice
        self.hooks = (*self.hooks, own)
        try:
            yield
        finally:
            self.hooks = tuple(other for other in self.hooks if other is not own)


def hook_points(module: nn.Module, *patterns: str) -> dict[str, HookPoint]:
    """The hook points of a network by name.

    Args:
        module: any module; a LightningModule or a DDP wrapper works too, its names then begin with ``net.`` or so.
        patterns: shell patterns (``*``, ``?``, ``[...]``) over the names; none means all hook points. ``*`` crosses
        dots.

    Returns:
        name to hook point, in the order of the module tree, every one that matches at least one pattern.

    Raises:
        ValueError: a pattern matches no hook point; the message lists those there are.
    """
    found = {name: child for name, child in module.named_modules() if isinstance(child, HookPoint)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"no hook point matches {pattern!r}; there are: {', '.join(found) or 'none'}")
    if not patterns:
        return found
    return {name: point for name, point in found.items() if any(fnmatchcase(name, p) for p in patterns)}


@contextmanager
def attach_hooks(module: nn.Module, *patterns: str, hook: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Attaches a hook to every matching hook point while the block runs; arguments as in :func:`hook_points`.

    Args:
        module: see there.
        patterns: see there.
        hook: called with a hook point's name and its tensor; what it returns replaces the tensor.

    Raises:
        ValueError: a pattern matches no hook point.
    """
    with ExitStack() as stack:
        for name, point in hook_points(module, *patterns).items():
            stack.enter_context(point.attach(partial(hook, name)))
        yield


@contextmanager
def observe(module: nn.Module, *patterns: str) -> Iterator[dict[str, Tensor]]:
    """Collects the latest tensor of matching hook points while the block runs; arguments as in :func:`hook_points`.

    Yields:
        A dictionary, empty at first, that each forward pass fills: name to tensor, not detached, not copied.

    Raises:
        ValueError: a pattern matches no hook point.
    """
    seen: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> Tensor:
        seen[name] = x
        return x

    with attach_hooks(module, *patterns, hook=record):
        yield seen
