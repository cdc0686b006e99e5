"""Attention context: what a layer does with queries, keys and values, and whether that explains what it gave."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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
        turn_back: its transpose, which for a rotation without a factor is its inverse; None where nothing is turned.
        outputs: (B, n, width) tensors among which is what attention gave; None where the layer lets none be seen.
        mixed: that of the outputs which attention explains best, (B, n, query heads × d); known once it was looked for.
        unreadable: why nothing was seen, if the layer knows.
    """

    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    turn: Callable[[Tensor], Tensor] = lambda x: x
    turn_back: Callable[[Tensor], Tensor] | None = None
    outputs: list[Tensor] | None = None
    mixed: Tensor | None = field(default=None, init=False)
    unreadable: str | None = None

    def explains(self, Q: Tensor, K: Tensor, V: Tensor) -> bool:
        """Whether attention as understood gives what the layer's did, within the rounding of its dtype."""
        error = self.error(Q, K, V)
        half = self.mixed is not None and self.mixed.element_size() < 4
        return error <= (0.03 if half else 0.003)  # 0.003: products in TF32 on a GPU

    @torch.no_grad()
    def error(self, Q: Tensor, K: Tensor, V: Tensor) -> float:
        """Least ‖softmax(Q Kᵀ) V − output‖ / ‖output‖ of the outputs that were seen.

        0 if the layer lets none be seen; infinite if none has the shape, or Q, K, V and the mask do not go together.
        """
        if self.outputs is None:
            return 0.0
        try:
            Q, K = self.turn(Q.float()), self.turn(K.float())
            mask = self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask.float()
            mixed = F.scaled_dot_product_attention(
                Q, K, V.float(), attn_mask=mask, is_causal=self.causal, scale=self.scale, enable_gqa=True
            )
        except RuntimeError:  # shapes that do not go together, such as a mask of a kernel
            return torch.inf
        mixed = mixed.transpose(1, 2)
        looking = None
        if mask is not None:  # what is made of queries that may look nowhere, as of padding, differs and is of no use
            looking = (mask if mask.dtype == torch.bool else mask > -torch.inf).any(-1)
            looking = looking.expand(*Q.shape[:3]).mT[..., None]
            mixed = torch.where(looking, mixed, 0)
        least = torch.inf
        for output in self.outputs:
            if output.shape[:2] != mixed.shape[:2] or output.numel() != mixed.numel():
                continue
            given = output.float().reshape(mixed.shape)
            given = given if looking is None else torch.where(looking, given, 0)
            error = float((mixed - given).norm() / given.norm().clamp_min(torch.finfo(torch.float32).tiny))
            if error < least:
                least, self.mixed = error, output
        return least


class AttentionLayer(Protocol):
    """A layer whose queries, keys and values can be observed."""

    name: str

    def attach(self, hook: AttentionHook) -> AbstractContextManager[AttentionContext]:
        """Attaches the hook while the block runs, and leaves no trace."""


def in_heads(x: Tensor, head_width: int) -> Tensor:
    """(B, T, width) to (B, heads, T, head width)."""
    return x.reshape(*x.shape[:-1], -1, head_width).transpose(1, 2)
