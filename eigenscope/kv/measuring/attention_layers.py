"""Adapters of attention layers (DeiT, nn.MultiheadAttention, timm, transformers): queries, keys and values."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.kv.measuring.attention_context import (
    ROLES,
    AttentionContext,
    AttentionHook,
    AttentionLayer,
    Role,
    in_heads,
)
from eigenscope.kv.measuring.projected_attention import ProjectedAttention
from eigenscope.kv.measuring.projection_names import projections
from eigenscope.nn.hook_point import HookPoint, attach_hooks
from eigenscope.nn.transformers.causal_transformer import CausalAttention, rotate
from eigenscope.text import abbreviate_names


def attention_layers(module: nn.Module, *patterns: str) -> list[AttentionLayer]:
    """The attention layers of a network, in the order of the module tree.

    Known are modules with hook points ``queries``, ``keys`` and ``values``, such as those of
    :class:`eigenscope.nn.DeiT`; :class:`torch.nn.MultiheadAttention`; and modules with projections of their own,
    separate (``q_proj``, ``query``, ``to_q``, …) or fused (``qkv``, ``c_attn``, ``query_key_value``, …), as in timm and
    transformers, whose layout of heads a first forward pass tells
    (:class:`~eigenscope.kv.measuring.projected_attention.ProjectedAttention`).

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
        elif sources := projections(child):
            found.append(ProjectedAttention(name, child, sources))
    if not found:
        unknown = [f"{name} ({type(child).__name__})" for name, child in module.named_modules() if _is_named_so(child)]
        raise ValueError(
            f"{type(module).__name__} has no attention layer with hook points queries, keys and values, no "
            f"nn.MultiheadAttention, and none with projections such as q_proj, k_proj and v_proj, query, key and "
            f"value, or qkv" + (f"; not understood: {abbreviate_names(unknown)}" if unknown else "")
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

            def turn(sign: int, x: Tensor) -> Tensor:
                return rotate(x, sign * torch.arange(x.shape[-2], device=x.device), base)

            context = AttentionContext(causal=True, turn=partial(turn, 1), turn_back=partial(turn, -1))
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
            own.append(in_heads(projected, projected.shape[-1] // layer.num_heads))
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


def _is_named_so(module: nn.Module) -> bool:
    """Whether a module that was not understood is attention by its name, and holds weights itself."""
    weights = any(True for _ in module.parameters())
    return "attention" in type(module).__name__.lower() and weights


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
