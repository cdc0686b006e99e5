"""Stacked (grouped) layers: the layers of K networks as one layer with stacked weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.nn.autoencoders.patch_autoencoder import SpectralCrossAttention


class StackedLinear(nn.Module):
    """K times ``nn.Linear``: weight (K, outputs, inputs), bias (K, outputs), as K modules' own stacked."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight[None])
        self.bias = nn.Parameter(layer.bias[None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps (K, N, inputs) to (K, N, outputs)."""
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class StackedLayerNorm(nn.Module):
    """K times ``nn.LayerNorm`` over the last dimension: weight and bias (K, width)."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight[None])
        self.bias = nn.Parameter(layer.bias[None])
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps (K, N, width) to the same shape."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias[:, None], normed, self.weight[:, None])


class StackedConv2d(nn.Module):
    """K times ``nn.Conv2d`` as one convolution of K groups: weight (K, outputs, inputs, h, w), bias (K, outputs)."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight[None])
        assert layer.bias is not None
        self.bias = nn.Parameter(layer.bias[None])
        self.padding = layer.padding

    def forward(self, x: Tensor) -> Tensor:
        """Maps (K, B, inputs, H, W) to (K, B, outputs, H, W), which lies in memory as (B, K, outputs, H, W)."""
        groups, outputs = self.bias.shape
        channels = x.transpose(0, 1).flatten(1, 2)
        mapped = F.conv2d(channels, self.weight.flatten(0, 1), self.bias.flatten(), padding=self.padding, groups=groups)
        return mapped.view(len(mapped), groups, outputs, *mapped.shape[2:]).transpose(0, 1)


class StackedAttention(nn.Module):
    """K times self-attention as ``nn.MultiheadAttention`` computes it; ``in_proj_weight`` is (K, 3D, D)."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(layer.in_proj_weight[None])
        self.in_proj_bias = nn.Parameter(layer.in_proj_bias[None])
        self.out_proj = StackedLinear(layer.out_proj)
        self.num_heads = layer.num_heads

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """Maps (K, B·L, D) to the same shape; the L vectors of each of the B sequences attend to each other."""
        projected = torch.baddbmm(self.in_proj_bias[:, None], x, self.in_proj_weight.mT)
        heads = projected.view(len(x) * batch, -1, 3, self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.out_proj(mixed)
        return out


class StackedCrossAttention(nn.Module):
    """K times :class:`SpectralCrossAttention`: gate (K, D)."""

    def __init__(self, layer: SpectralCrossAttention) -> None:
        super().__init__()
        self.gate = nn.Parameter(layer.gate[None])
        self.norm = StackedLayerNorm(layer.norm)
        self.attention = StackedAttention(layer.attention)

    def forward(self, S: Tensor) -> Tensor:
        """The gains 1 + α ⊙ tanh(·) for singular values (K, B, L, D), same shape, at least float32."""
        mixed: Tensor = self.attention(self.norm(S.flatten(1, 2)), S.shape[1])
        strength = 0.2 * self.gate.sigmoid()
        change = strength[:, None] * mixed.tanh()
        return (1 + change.to(torch.promote_types(change.dtype, torch.float32))).view(S.shape)


def stack_layers(network: nn.Module) -> None:
    """Replaces the layers of a network, in place and under their names, by stacks of one.

    What has no weights of its own (activations, sums, sequences) stays; a parameter's name does too, and its shape
    gains a leading 1. Linear layers and norms then take (K, N, width), convolutions (K, B, C, H, W), cross-attention
    (K, B, L, D).
    """
    for name, layer in network.named_children():
        stacked: nn.Module
        match layer:
            case nn.Linear():
                stacked = StackedLinear(layer)
            case nn.LayerNorm():
                stacked = StackedLayerNorm(layer)
            case nn.Conv2d():
                stacked = StackedConv2d(layer)
            case SpectralCrossAttention():
                stacked = StackedCrossAttention(layer)
            case _:
                stack_layers(layer)
                continue
        setattr(network, name, stacked)
