"""Head layouts: how projections hold the heads of queries, keys and values, and how these are rotated."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eigenscope.kv.measuring.attention_context import ROLES, Role, in_heads

Heads = dict[Role, Tensor]
"""(B, heads, T, d) by role."""


@dataclass(frozen=True)
class SeparateLayout:
    """A projection of its own for each of queries, keys and values.

    Attributes:
        widths: channels of a head, by role.
    """

    widths: tuple[int, int, int]

    def split(self, place: int, x: Tensor) -> Heads:
        """Heads of the output (B, T, width) of the projection at this place."""
        return {ROLES[place]: in_heads(x, self.widths[place])}

    def join(self, place: int, heads: Heads) -> Tensor:
        """The output of the projection that holds these heads."""
        return heads[ROLES[place]].transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class FusedLayout:
    """One projection for all three.

    Attributes:
        kind: ``blocks``, all heads of the first role before those of the next (timm's qkv, GPT-2, Phi-3); ``groups``,
            each key head with its query heads, key and value (BLOOM, GPT-NeoX, Falcon); ``channels``, the three roles
            of each channel side by side.
        groups: heads of keys and of values.
        shared: query heads of each.
        width: channels of a head.
        order: of the roles.
    """

    kind: Literal["blocks", "groups", "channels"]
    groups: int
    shared: int
    width: int
    order: tuple[Role, ...] = ROLES

    def split(self, place: int, x: Tensor) -> Heads:
        """Heads of the output (B, T, width)."""
        if self.kind == "channels":
            parts = x.reshape(*x.shape[:-1], self.groups, self.width, 3).unbind(-1)
            return {role: part.transpose(1, 2) for role, part in zip(self.order, parts, strict=True)}
        if self.kind == "blocks":
            pieces = torch.split(x, [self.groups * self.width * n for n in self._counts()], -1)
            return {role: in_heads(part, self.width) for role, part in zip(self.order, pieces, strict=True)}
        grouped = x.reshape(*x.shape[:-1], self.groups, self.shared + 2, self.width)
        pieces = torch.split(grouped, self._counts(), -2)
        return {role: part.flatten(2, 3).transpose(1, 2) for role, part in zip(self.order, pieces, strict=True)}

    def join(self, place: int, heads: Heads) -> Tensor:
        """The output that holds these heads."""
        parts = [heads[role].transpose(1, 2) for role in self.order]
        if self.kind == "channels":
            return torch.stack(parts, -1).flatten(2)
        if self.kind == "groups":
            parts = [x.reshape(*x.shape[:2], self.groups, -1, self.width) for x in parts]
            return torch.cat(parts, -2).flatten(2)
        return torch.cat([x.flatten(2) for x in parts], -1)

    def _counts(self) -> list[int]:
        return [self.shared if role == "queries" else 1 for role in self.order]


Layout = SeparateLayout | FusedLayout


def fused_layouts(width: int, heads: int, head_width: int, grouped_first: bool) -> Iterator[FusedLayout]:
    """Layouts of ``width`` channels with so many query heads, the usual ones first; none if the widths do not fit."""
    rest = width // head_width - heads
    groups = rest // 2
    if width % head_width or rest < 2 or rest % 2 or heads % groups:
        return
    kinds: list[Literal["blocks", "groups", "channels"]] = (
        ["groups", "blocks"] if grouped_first else ["blocks", "groups"]
    )
    if groups == heads:
        kinds.append("channels")
    for order in permutations(ROLES):
        for kind in kinds:
            yield FusedLayout(kind, groups, heads // groups, head_width, order)


def norm_shape(given: Tensor, heads: Tensor) -> Literal["heads", "tokens", "flat"] | None:
    """How a norm is given the heads (B, H, T, d): so, as (B, T, H, d) or as (B, T, H d); None: it is not given them."""
    for kind in ("heads", "tokens", "flat"):
        wanted = from_heads(kind, heads)
        if given.shape == wanted.shape and given.equal(wanted):
            return kind
    return None


def from_heads(kind: str, x: Tensor) -> Tensor:
    """(B, H, T, d) in the shape of :func:`norm_shape`."""
    if kind == "heads":
        return x
    return x.transpose(1, 2) if kind == "tokens" else x.transpose(1, 2).flatten(2)


def to_heads(kind: str, x: Tensor, head_width: int) -> Tensor:
    """The reverse."""
    if kind == "heads":
        return x
    return x.transpose(1, 2) if kind == "tokens" else in_heads(x, head_width)


class Turn(NamedTuple):
    """A rotation by positions and its transpose, each of (B, heads, T, d)."""

    forth: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor] | None


def turns(arguments: Mapping[str, object], prefix: int) -> list[Turn]:
    """Rotations that the arguments of an attention layer may mean, the usual one first.

    Args:
        arguments: of its forward pass: ``position_embeddings`` are cosines and sines (B, T, d or fewer channels), as in
            transformers; ``rope`` is (T, 2 d), sines before cosines, as in timm.
        prefix: tokens at the start that ``rope`` leaves as they are.
    """
    unturned = Turn(lambda x: x, None)
    positions, rope = arguments.get("position_embeddings"), arguments.get("rope")
    if isinstance(positions, tuple | list) and len(positions) == 2 and all(isinstance(x, Tensor) for x in positions):
        cos, sin = positions
        halves = [x[..., : x.shape[-1] // 2].repeat_interleave(2, -1) for x in (cos, sin)]
        choices = [(False, cos, sin), (True, cos, sin), (True, *halves)]
    elif isinstance(rope, Tensor) and rope.ndim == 2:
        sin, cos = rope.chunk(2, -1)
        cos = torch.cat([torch.ones_like(cos[:1]).expand(prefix, -1), cos])[None]
        sin = torch.cat([torch.zeros_like(sin[:1]).expand(prefix, -1), sin])[None]
        choices = [(True, cos, sin), (False, cos, sin)]
    else:
        return [unturned]
    found = [
        Turn(partial(_turned, neighbours, cos, sin), partial(_turned, neighbours, cos, -sin))
        for neighbours, cos, sin in choices
    ]
    return [*found, unturned]


def _turned(neighbours: bool, cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
    """Rotation in planes of neighbouring channels, or of i and i + r/2; of the first r channels, as many as cos has."""
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if neighbours:
        across = torch.stack([-turning[..., 1::2], turning[..., ::2]], -1).flatten(-2)
    else:
        first, second = turning.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    turned = turning * cos[:, None].to(x.dtype) + across * sin[:, None].to(x.dtype)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
