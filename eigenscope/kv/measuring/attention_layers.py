"""Adapters of attention layers (DeiT, nn.MultiheadAttention, transformers): access to queries, keys and values."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.nn.hook_point import HookPoint, attach_hooks
from eigenscope.nn.transformers.causal_transformer import CausalAttention, rotate

Role = Literal["queries", "keys", "values"]
ROLES: tuple[Role, ...] = ("queries", "keys", "values")
AttentionHook = Callable[[str, Role, Tensor], Tensor]
"""Takes a layer's name, a role and its tensor (B, heads, T, d), before rotation; what it returns replaces it."""


@dataclass
class AttentionContext:
    """Attention context of a layer: mask, scale and rotation; complete after a forward pass.

    Attributes:
        mask: broadcasts against (B, query heads, n, T), boolean (True: may look) or added to the scores; None for none.
        causal: whether a query sees no later token.
        scale: of the scores; None is 1/√d.
        turn: the rotation by positions, of queries and keys (B, heads, T, d).
        mixed: (B, n, query heads × d) what attention gave, where the layer lets it be seen.
        unreadable: why nothing was seen, if the layer knows.
    """

    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    turn: Callable[[Tensor], Tensor] = lambda x: x
    mixed: Tensor | None = None
    unreadable: str | None = None


class AttentionLayer(Protocol):
    """A layer whose queries, keys and values can be observed."""

    name: str

    def attach(self, hook: AttentionHook) -> AbstractContextManager[AttentionContext]:
        """Attaches the hook while the block runs, and leaves no trace."""


def attention_layers(module: nn.Module, *patterns: str) -> list[AttentionLayer]:
    """The attention layers of a network, in the order of the module tree.

    Known are modules with hook points ``queries``, ``keys`` and ``values``, such as those of
    :class:`eigenscope.nn.DeiT`; :class:`torch.nn.MultiheadAttention`; and modules with ``q_proj``, ``k_proj`` and
    ``v_proj``, as in transformers.

    Args:
        module: any module.
        patterns: shell patterns over the layers' names; none means all. ``*`` crosses dots.

    Raises:
        ValueError: there is no such layer, or a pattern matches none; the message lists those there are.
    """
    found: list[AttentionLayer] = []
    for name, child in module.named_modules():
        if all(isinstance(getattr(child, role, None), HookPoint) for role in ROLES):
            found.append(_Probed(name, child))
        elif isinstance(child, nn.MultiheadAttention):
            found.append(_Multihead(name, child))
        elif all(isinstance(getattr(child, f"{letter}_proj", None), nn.Module) for letter in "qkv"):
            found.append(_Projected(name, child))
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no attention layer with hook points queries, keys and values, no "
            f"nn.MultiheadAttention, and none with q_proj, k_proj and v_proj"
        )
    for pattern in patterns:
        if not any(fnmatchcase(layer.name, pattern) for layer in found):
            names = ", ".join(layer.name for layer in found)
            raise ValueError(f"layers: no attention layer matches {pattern!r}; there are: {names}")
    return [layer for layer in found if not patterns or any(fnmatchcase(layer.name, p) for p in patterns)]


@dataclass
class _Probed:
    """Attention of this project, with hook points."""

    name: str
    module: nn.Module

    @contextmanager
    def attach(self, hook: AttentionHook) -> Iterator[AttentionContext]:
        context = AttentionContext()
        if isinstance(self.module, CausalAttention):
            base = self.module.rope_base
            context = AttentionContext(
                causal=True, turn=lambda x: rotate(x, torch.arange(x.shape[-2], device=x.device), base)
            )
        with attach_hooks(self.module, *ROLES, hook=lambda role, x: hook(self.name, cast(Role, role), x)):
            yield context


@dataclass
class _Multihead:
    """:class:`torch.nn.MultiheadAttention`, which projects inside: its hook computes attention once more."""

    name: str
    module: nn.MultiheadAttention

    @contextmanager
    def attach(self, hook: AttentionHook) -> Iterator[AttentionContext]:
        context = AttentionContext()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it calls no hooks
        handle = self.module.register_forward_hook(partial(self._attend, hook, context), with_kwargs=True)
        try:
            yield context
        finally:
            handle.remove()
            torch.backends.mha.set_fastpath_enabled(fast)

    def _attend(
        self, hook: AttentionHook, context: AttentionContext, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        given = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs)
        given.apply_defaults()
        layer, inputs = self.module, [given.arguments[name] for name in ("query", "key", "value")]
        if layer.bias_k is not None or layer.add_zero_attn:
            context.unreadable = "it adds tokens of its own (add_bias_kv, add_zero_attn)"
        elif inputs[0].is_nested or inputs[0].ndim != 3:
            context.unreadable = "its input is not (B, T, width)"
        if context.unreadable is not None:
            return None
        weights = (
            layer.in_proj_weight.chunk(3)
            if layer.in_proj_weight is not None
            else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        )
        biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
        own = []
        for x, weight, bias in zip(inputs, weights, biases, strict=True):
            projected = F.linear(x if layer.batch_first else x.transpose(0, 1), weight, bias)
            own.append(_in_heads(projected, projected.shape[-1] // layer.num_heads))
        mask = _additive_mask(given.arguments["attn_mask"], given.arguments["key_padding_mask"], own[0])
        context.mask = mask
        new = [hook(self.name, role, x) for role, x in zip(ROLES, own, strict=True)]
        if all(x is y for x, y in zip(own, new, strict=True)):
            return None  # the layer's own output stays, to the bit
        Q, K, V = new
        mixed = F.scaled_dot_product_attention(Q, K, V, attn_mask=mask).transpose(1, 2).flatten(2)
        out = layer.out_proj(mixed)
        scores = None
        if given.arguments["need_weights"]:
            scores = Q @ K.mT / Q.shape[-1] ** 0.5
            scores = (scores if mask is None else scores + mask).softmax(-1)
            scores = scores.mean(1) if given.arguments["average_attn_weights"] else scores
        return out if layer.batch_first else out.transpose(0, 1), scores


@dataclass
class _Projected:
    """Attention as in transformers: modules ``q_proj``, ``k_proj``, ``v_proj``, rotation afterwards."""

    name: str
    module: nn.Module

    @contextmanager
    def attach(self, hook: AttentionHook) -> Iterator[AttentionContext]:
        context = AttentionContext(scale=getattr(self.module, "scaling", None))
        d = _head_width(self.module)
        if d is None:
            context.unreadable = "it has neither head_dim nor a number of heads"
            yield context
            return

        def on_projection(role: Role, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            own = _in_heads(output, d)
            new = hook(self.name, role, own)
            return None if new is own else new.transpose(1, 2).flatten(2)

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            mask, positions = kwargs.get("attention_mask"), kwargs.get("position_embeddings")
            if mask is not None and mask.is_floating_point():  # the least number stands for −inf
                mask = mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)
            context.mask = mask
            context.causal = mask is None and bool(getattr(module, "is_causal", False))
            if positions is not None:
                context.turn = partial(_turned, *positions)

        def see(module: nn.Module, args: Any) -> None:
            context.mixed = args[0].detach()

        with ExitStack() as stack:
            for role in ROLES:
                projection = cast(nn.Module, getattr(self.module, f"{role[0]}_proj"))
                stack.callback(projection.register_forward_hook(partial(on_projection, role)).remove)
            stack.callback(self.module.register_forward_pre_hook(look, with_kwargs=True).remove)
            out = next(
                (o for o in ("o_proj", "out_proj") if isinstance(getattr(self.module, o, None), nn.Module)), None
            )
            if out is not None:
                stack.callback(cast(nn.Module, getattr(self.module, out)).register_forward_pre_hook(see).remove)
            yield context


def _in_heads(x: Tensor, head_width: int) -> Tensor:
    """(B, T, width) to (B, heads, T, head width)."""
    return x.reshape(*x.shape[:-1], -1, head_width).transpose(1, 2)


def _head_width(module: nn.Module) -> int | None:
    width = getattr(module, "head_dim", None)
    if isinstance(width, int):
        return width
    for owner in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            heads = getattr(owner, name, None)
            features = getattr(module.q_proj, "out_features", None)
            if isinstance(heads, int) and isinstance(features, int):
                return features // heads
    return None


def _additive_mask(attended: Tensor | None, padding: Tensor | None, Q: Tensor) -> Tensor | None:
    """The two masks of nn.MultiheadAttention, in which True forbids, as numbers to add to (B, heads, n, T)."""
    parts = []
    if attended is not None:
        parts.append(attended if attended.ndim == 2 else attended.reshape(-1, Q.shape[1], *attended.shape[1:]))
    if padding is not None:
        parts.append(padding[:, None, None, :])
    numbers = [
        torch.zeros(part.shape, dtype=Q.dtype, device=Q.device).masked_fill(part, -torch.inf)
        if part.dtype == torch.bool
        else part.to(Q.dtype)
        for part in parts
    ]
    return None if not numbers else sum(numbers[1:], numbers[0])


def _turned(cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
    """Rotation in planes of channels i and i + d/2, cos and sin (B, T, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None].to(x.dtype) + torch.cat([-second, first], dim=-1) * sin[:, None].to(x.dtype)
