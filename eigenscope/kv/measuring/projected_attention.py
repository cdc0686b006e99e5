"""Projected attention: layers whose queries, keys and values come from linear modules, separate or fused."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.kv.measuring.attention_context import ROLES, AttentionContext, AttentionHook, Role
from eigenscope.kv.measuring.head_layouts import (
    Layout,
    SeparateLayout,
    Turn,
    from_heads,
    fused_layouts,
    norm_shape,
    to_heads,
    turns,
)
from eigenscope.kv.measuring.projection_names import norms, whole_number

_PER_HEAD = "query_key_value"  # is laid out head by head wherever it is known from
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nheads")
_WIDTHS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "head_width", "dim_head", "d_head")
_BIASES = ("alibi", "position_bias")
_MASKS = ("attention_mask", "attn_mask", "mask")


@dataclass(frozen=True)
class _Reading:
    """How a layer was understood: where heads are, in what shape norms get them, which rotation and which mask."""

    layout: Layout
    norm_shapes: dict[Role, str]
    turn: int
    mask: int


class ProjectedAttention:
    """Attention with projections, norms of queries and keys maybe, and rotation maybe, in this order.

    In a first forward pass the layer is only read: of the known layouts of heads, rotations and masks that one is
    taken whose attention gives what the layer gave. From then on its keys and values can be replaced.

    Args:
        name: of the layer.
        module: of the layer.
        sources: its :func:`projections`.
    """

    def __init__(self, name: str, module: nn.Module, sources: tuple[str, ...]) -> None:
        self.name, self.module, self.sources = name, module, sources
        self.norms = norms(module)
        self._reading: _Reading | None = None

    @contextmanager
    def attach(self, hook: AttentionHook) -> Iterator[AttentionContext]:
        """Attaches the hook while the block runs, and leaves no trace."""
        scale = next((getattr(self.module, x, None) for x in ("scaling", "scale") if hasattr(self.module, x)), None)
        context = AttentionContext(scale=float(scale) if isinstance(scale, float | int) else None, outputs=[])
        seen: dict[str, Tensor] = {}
        arguments: dict[str, Any] = {}
        with ExitStack() as stack:
            for name, child in self.module.named_children():
                if name in self.sources:
                    handle = child.register_forward_hook(partial(self._project, hook, seen, self.sources.index(name)))
                elif self.norms and name in self.norms:
                    role = ROLES[self.norms.index(name)]
                    handle = child.register_forward_hook(partial(self._normalise, hook, seen, role))
                else:
                    handle = child.register_forward_pre_hook(partial(_see, context))
                stack.callback(handle.remove)
            begin = partial(self._begin, context, seen, arguments)
            stack.callback(self.module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            end = partial(self._end, hook, context, seen, arguments)
            stack.callback(self.module.register_forward_hook(end).remove)
            yield context

    def _begin(
        self, context: AttentionContext, seen: dict[str, Tensor], arguments: dict[str, Any], module: Any, *given: Any
    ) -> None:
        seen.clear()
        arguments.clear()
        assert context.outputs is not None
        context.outputs.clear()
        try:
            bound = inspect.signature(module.forward).bind(*given[0], **given[1])
        except (TypeError, ValueError):  # its own forward pass will say so
            return
        for name, value in bound.arguments.items():
            is_rest = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            arguments |= value if is_rest else {name: value}
        if self._reading is not None:
            self._understand(context, arguments, self._reading.turn, self._reading.mask)

    def _project(
        self, hook: AttentionHook, seen: dict[str, Tensor], place: int, module: nn.Module, args: Any, output: Tensor
    ) -> Tensor | None:
        seen[self.sources[place]] = output
        if self._reading is None:
            return None
        layout = self._reading.layout
        own = layout.split(place, output)
        new = {r: x if r in self._reading.norm_shapes else hook(self.name, r, x) for r, x in own.items()}
        return None if all(new[role] is x for role, x in own.items()) else layout.join(place, new)

    def _normalise(
        self, hook: AttentionHook, seen: dict[str, Tensor], role: Role, module: nn.Module, args: Any, output: Tensor
    ) -> Tensor | None:
        if self._reading is None:
            if args and isinstance(args[0], Tensor):
                seen[f"given {role}"], seen[role] = args[0], output
            return None
        shape = self._reading.norm_shapes.get(role)
        if shape is None:
            return None
        own = to_heads(shape, output, self._width(role))
        new = hook(self.name, role, own)
        return None if new is own else from_heads(shape, new)

    def _end(
        self,
        hook: AttentionHook,
        context: AttentionContext,
        seen: dict[str, Tensor],
        arguments: dict[str, Any],
        module: nn.Module,
        args: Any,
        output: Any,
    ) -> None:
        _see(context, module, output if isinstance(output, tuple | list) else (output,))
        if self._reading is not None:
            return
        found = self._read(context, seen, arguments)
        if isinstance(found, str):
            context.unreadable = found
            return
        self._reading, heads = found
        for role, own in heads.items():
            if hook(self.name, role, own) is not own:
                self._reading = None
                raise ValueError(
                    f"{role} of {self.name!r} can be replaced only after a forward pass was captured, which tells how "
                    f"{' and '.join(self.sources)} hold them"
                )

    def _read(
        self, context: AttentionContext, seen: dict[str, Tensor], arguments: Mapping[str, Any]
    ) -> tuple[_Reading, dict[Role, Tensor]] | str:
        """The reading whose attention gives what the layer gave, with the heads that it finds; or why there is none."""
        missing = next((name for name in self.sources if name not in seen), None)
        if missing is not None:
            return f"it does not call its {missing}, as if it used the weights alone"
        outputs = [seen[name] for name in self.sources]
        layouts = self._layouts(outputs)
        if isinstance(layouts, str):
            return layouts
        best: tuple[float, _Reading, dict[Role, Tensor]] | None = None
        for layout in layouts:
            heads = {role: x for place, output in enumerate(outputs) for role, x in layout.split(place, output).items()}
            shapes = _norm_shapes(seen, heads)
            if shapes is None and isinstance(layout, SeparateLayout):
                shapes = {}  # a norm of something else, as after the rotation: what is projected is read all the same
            elif shapes is None:
                continue
            heads |= {role: to_heads(shape, seen[role], heads[role].shape[-1]) for role, shape in shapes.items()}
            for turn, mask in product(range(len(self._turns(arguments))), range(len(self._masks(arguments)))):
                self._understand(context, arguments, turn, mask)
                error = context.error(*(heads[role] for role in ROLES))
                if best is None or error < best[0]:
                    best = error, _Reading(layout, shapes, turn, mask), heads
                if error < 1e-5:
                    break
            if best is not None and best[0] < 1e-5:
                break
        if best is None:
            return f"its {' and '.join(self.norms or ())} are not given what {' and '.join(self.sources)} make"
        _, reading, heads = best
        self._understand(context, arguments, reading.turn, reading.mask)
        explained = context.explains(*(heads[role] for role in ROLES))
        if isinstance(reading.layout, SeparateLayout) or explained or reading.norm_shapes:
            return reading, heads
        shape = f"{heads['queries'].shape[1]} query heads of {heads['queries'].shape[-1]} channels"
        return (
            f"how its {self.sources[0]} of {outputs[0].shape[-1]} channels holds {shape}, keys and values could not be "
            f"told: with no known layout does softmax(Q Kᵀ) V give what the layer gave"
        )

    def _layouts(self, outputs: list[Tensor]) -> list[Layout] | str:
        """The layouts that go with the shapes of what the projections gave, or why there is none."""
        for name, output in zip(self.sources, outputs, strict=True):
            if not isinstance(output, Tensor) or output.ndim != 3:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                return f"its {name} gives {shape}, not (B, T, width)"
        heads, width = whole_number(self.module, _HEADS), whole_number(self.module, _WIDTHS)
        total = outputs[0].shape[-1]
        if heads is None and width is None:
            return "it has neither head_dim nor a number of heads"
        if len(self.sources) == 3:
            width = width if width is not None and total % width == 0 else total // (heads or 1)
            key_heads, rest = divmod(outputs[1].shape[-1], width) if width else (0, 0)
            if rest or not key_heads or total % width or outputs[2].shape[-1] % key_heads:
                shapes = ", ".join(str(x.shape[-1]) for x in outputs)
                return f"{shapes} channels of its {', '.join(self.sources)} are no whole heads of {width} channels"
            return [SeparateLayout((width, width, outputs[2].shape[-1] // key_heads))]
        width = width if width is not None else total // (3 * (heads or 1))
        heads = heads if heads is not None else total // (3 * width)
        if width and heads:
            found = list(fused_layouts(total, heads, width, grouped_first=_PER_HEAD in self.sources[0]))
            if found:
                return [*found]
        return (
            f"{total} channels of its {self.sources[0]} are not those of {heads} query heads of {width} channels with "
            f"keys and values"
        )

    def _turns(self, arguments: Mapping[str, Any]) -> list[Turn]:
        return turns(arguments, int(getattr(self.module, "num_prefix_tokens", 0) or 0))

    def _masks(self, arguments: Mapping[str, Any]) -> list[Tensor | None]:
        """What may be added to the scores: the mask, a boolean one either way, with biases by distance or without."""
        mask = next((arguments[x] for x in _MASKS if isinstance(arguments.get(x), Tensor)), None)
        masks = [mask]
        if mask is not None and mask.is_floating_point():  # the least number stands for −inf
            masks = [mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)]
        elif mask is not None and mask.dtype == torch.bool:
            masks = [mask, ~mask]
        bias = next((arguments[x] for x in _BIASES if isinstance(arguments.get(x), Tensor)), None)
        heads = whole_number(self.module, _HEADS) or 1
        if bias is None or bias.ndim < 3 or bias.shape[:-2].numel() % heads:
            return masks
        bias = bias.reshape(-1, heads, *bias.shape[-2:])
        scaled = bias * (whole_number(self.module, _WIDTHS) or 1) ** -0.5
        return [*(_biased(mask, bias) for mask in masks), *masks, *(_biased(mask, scaled) for mask in masks)]

    def _understand(self, context: AttentionContext, arguments: Mapping[str, Any], turn: int, mask: int) -> None:
        """Sets mask and rotation of a pass."""
        masks = self._masks(arguments)
        context.mask = masks[min(mask, len(masks) - 1)]
        asked = arguments.get("is_causal")
        causal = asked if isinstance(asked, bool) else getattr(self.module, "is_causal", False)
        context.causal = context.mask is None and bool(causal)
        found = self._turns(arguments)
        context.turn, context.turn_back = found[min(turn, len(found) - 1)]

    def _width(self, role: Role) -> int:
        assert self._reading is not None
        layout = self._reading.layout
        return layout.widths[ROLES.index(role)] if isinstance(layout, SeparateLayout) else layout.width


def _see(context: AttentionContext, module: nn.Module, args: Any) -> None:
    """Notes what may be the output of attention: the input of any other child, and the output of the layer."""
    assert context.outputs is not None
    if args and isinstance(args[0], Tensor) and args[0].ndim == 3:
        context.outputs.append(args[0].detach())


def _biased(mask: Tensor | None, bias: Tensor) -> Tensor | None:
    """The mask with a bias, of which what stands at the end belongs to the tokens at hand; as it is if that fails."""
    if mask is None:
        return bias
    bias = bias[..., -mask.shape[-2] :, -mask.shape[-1] :]
    if bias.shape[-1] not in (1, mask.shape[-1]) or bias.shape[-2] not in (1, mask.shape[-2]):
        return mask
    return torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else mask + bias


def _norm_shapes(seen: Mapping[str, Tensor], heads: Mapping[Role, Tensor]) -> dict[Role, str] | None:
    """In what shape the norms that were called got the heads; None if one got something else."""
    found: dict[Role, str] = {}
    for role in ROLES[:2]:
        if role in seen:
            shape = norm_shape(seen[f"given {role}"], heads[role])
            if shape is None:
                return None
            found[role] = shape
    return found
