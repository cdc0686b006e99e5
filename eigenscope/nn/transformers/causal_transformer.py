"""Causal transformer (decoder) with rotary positions and grouped-query attention."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.nn.hook_point import HookPoint

Past = Sequence[tuple[Tensor, Tensor]]
"""Keys before rotation and values of every block, each (B, key heads, P, head width), of P tokens that came before."""


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turns queries or keys by their positions (Su et al., *RoFormer*, Neurocomputing 568, 2024).

    Channels i and i + d/2 are a plane, turned by p · base^(−2i/d) at position p, so that a score depends on the
    distance of query and key alone.

    Args:
        x: (..., T, d), d even.
        positions: (T,) of an integer dtype.
        base: ratio that the planes' wavelengths span.

    Returns:
        The shape and dtype of ``x``; angles are computed in float32 at least.
    """
    frequencies = _frequencies(x.shape[-1], base, x)
    angles = positions.to(frequencies)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _frequencies(d: int, base: float, like: Tensor) -> Tensor:
    """Radians a token of the d/2 planes, float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    powers: Tensor = base ** (-torch.arange(d // 2, dtype=dtype, device=like.device) / (d // 2))
    return powers


class CausalAttention(nn.Module):
    """Attention to the tokens before and to the token itself; several query heads may share a key head.

    Hook points: ``queries`` (B, heads, T, head width), ``keys`` and ``values`` (B, key heads, T, head width), all
    before rotation. Queries, keys and values have biases, as in Qwen2: with rotary positions a head that attends by
    distance alone needs them.

    Args:
        width: channels of a token.
        num_heads: query heads, a divisor of ``width``.
        num_key_heads: heads of keys and values, a divisor of ``num_heads``.
        rope_base: see :func:`rotate`.
    """

    def __init__(self, width: int, num_heads: int, num_key_heads: int, rope_base: float) -> None:
        super().__init__()
        self.head_width = width // num_heads
        self.rope_base = rope_base
        self.to_queries = nn.Linear(width, width)
        self.to_keys = nn.Linear(width, num_key_heads * self.head_width)
        self.to_values = nn.Linear(width, num_key_heads * self.head_width)
        self.projection = nn.Linear(width, width, bias=False)
        self.queries = HookPoint()
        self.keys = HookPoint()
        self.values = HookPoint()

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Maps (B, T, width) to the same shape; ``past`` is this block's of :data:`Past`."""
        q, k, v = (
            point(linear(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2))
            for point, linear in (
                (self.queries, self.to_queries),
                (self.keys, self.to_keys),
                (self.values, self.to_values),
            )
        )
        mask = None
        if past is not None:
            before = past[0].shape[-2]
            k, v = torch.cat([past[0].to(k), k], dim=-2), torch.cat([past[1].to(v), v], dim=-2)
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=x.device).tril(before)
        positions = torch.arange(k.shape[-2], device=x.device)
        q, k = rotate(q, positions[-q.shape[-2] :], self.rope_base), rotate(k, positions, self.rope_base)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        out: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return out

    @torch.no_grad()
    def start_copying(self) -> None:
        """Sets W_o = W_vᵀ, so that what is attended to is copied; shared value heads once for each query head."""
        copied = self.to_values.weight.view(-1, self.head_width, self.projection.in_features)
        shared = len(self.projection.weight) // self.to_values.out_features
        self.projection.weight.copy_(copied.repeat_interleave(shared, 0).flatten(0, 1).mT)

    @torch.no_grad()
    def look_back(self) -> None:
        """Sets the biases of the first head so that every token attends to the one before it.

        The score at distance Δ is c² Σ cos(θ_i (Δ − 1)) / √d over the rotary planes, with c such that the distances 0
        and 2 are 3 below distance 1, e³ times less attended to.
        """
        d = self.head_width
        angles = _frequencies(d, self.rope_base, self.to_queries.bias)
        size = (3 * d**0.5 / (1 - angles.cos()).sum()) ** 0.5
        self.to_queries.bias[:d] = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)]) * size
        self.to_keys.bias[:d] = torch.cat([angles.cos(), angles.sin()]) * size


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer, *GLU variants improve transformer*, 2020): (silu(x W_g) ⊙ x W_u) W_d.

    Args:
        width: channels of a token.
        hidden: channels in between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., width) to the same shape."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class DecoderBlock(nn.Module):
    """A pre-norm layer: attention and MLP, each added to its input.

    Args:
        attention: of the block.
        mlp: of the block.
        width: channels of a token.
    """

    def __init__(self, attention: CausalAttention, mlp: GatedMLP, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.mlp = mlp

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Maps (B, T, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x), past)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class CausalTransformer(nn.Module):
    """A decoder of the Llama kind (Touvron et al., *LLaMA*, 2023), small enough to train on a CPU.

    Its arithmetic is that of transformers' ``LlamaForCausalLM``, weight for weight, so that what is trained here can
    be generated with there (:func:`llama_weights`). Hook points: ``blocks.i.attention.{queries,keys,values}``, before
    rotation.

    Looking something up takes a head that attends to the token before and, in a later block, one that finds what such
    heads have written (Olsson et al., *In-context learning and induction heads*, 2022). From weights at random neither
    is of use before the other is there, and training waits long for both. So attention starts by copying what it
    attends to (W_o = W_vᵀ, the sign turned of Trockman & Kolter, *Mimetic initialization of self-attention layers*,
    ICML 2023), the output layer by naming what was copied (the embedding's weights), and one head of the first block
    by attending to the token before; which token matters is left to training.

    Args:
        vocabulary: tokens known, of the input and of the output.
        width: channels of a token.
        depth: blocks.
        num_heads: query heads, a divisor of ``width``; the head's width must be even.
        num_key_heads: heads of keys and values, a divisor of ``num_heads``; None is as many.
        mlp_width: hidden channels of the MLP.
        rope_base: ratio of the longest to the shortest wavelength of the positions, about 2π tokens.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 2,
        num_key_heads: int | None = None,
        mlp_width: int = 128,
        rope_base: float = 10_000.0,
    ) -> None:
        super().__init__()
        num_key_heads = num_heads if num_key_heads is None else num_key_heads
        counts = {"vocabulary": vocabulary, "width": width, "depth": depth, "num_heads": num_heads}
        for name, value in (counts | {"num_key_heads": num_key_heads, "mlp_width": mlp_width}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if width % (2 * num_heads):
            raise ValueError(f"num_heads must divide width {width} into heads of even width, got {num_heads}")
        if num_heads % num_key_heads:
            raise ValueError(f"num_key_heads must divide num_heads {num_heads}, got {num_key_heads}")
        if not rope_base > 1:
            raise ValueError(f"rope_base must be above 1, got {rope_base}")
        self.vocabulary = vocabulary
        self.rope_base = rope_base
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            DecoderBlock(CausalAttention(width, num_heads, num_key_heads, rope_base), GatedMLP(width, mlp_width), width)
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head.weight.copy_(self.embedding.weight)
        for block in self.blocks:
            cast(DecoderBlock, block).attention.start_copying()
        cast(DecoderBlock, self.blocks[0]).attention.look_back()

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """What follows each token.

        Args:
            tokens: (B, T) int64.
            past: the keys and values of the tokens before these, as the hook points showed them; None if there are
            none.

        Returns:
            (B, T, vocabulary) logits of the token after each.
        """
        x = self.embedding(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, None if past is None else past[index])
        logits: Tensor = self.head(self.norm(x))
        return logits


def llama_weights(net: CausalTransformer) -> dict[str, Tensor]:
    """The weights under the names of transformers' ``LlamaForCausalLM`` with ``attention_bias``, the tensors shared.

    The library's configuration must agree: ``rms_norm_eps`` 1e-6, untied embeddings, ``rope_theta`` of this network's.
    """
    names = {
        "attention_norm.": "input_layernorm.",
        "attention.to_queries.": "self_attn.q_proj.",
        "attention.to_keys.": "self_attn.k_proj.",
        "attention.to_values.": "self_attn.v_proj.",
        "attention.projection.": "self_attn.o_proj.",
        "mlp_norm.": "post_attention_layernorm.",
        "mlp.gate.": "mlp.gate_proj.",
        "mlp.up.": "mlp.up_proj.",
        "mlp.down.": "mlp.down_proj.",
    }
    weights = {
        "model.embed_tokens.weight": net.embedding.weight,
        "model.norm.weight": net.norm.weight,
        "lm_head.weight": net.head.weight,
    }
    for index, block in enumerate(net.blocks):
        for name, value in block.state_dict().items():
            ours = next(ours for ours in names if name.startswith(ours))
            weights[f"model.layers.{index}.{names[ours]}{name.removeprefix(ours)}"] = value
        weights[f"model.layers.{index}.self_attn.o_proj.bias"] = net.norm.weight.new_zeros(net.norm.weight.shape)
    return {name: weight.detach() for name, weight in weights.items()}
