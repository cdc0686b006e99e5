"""Cross-attention among the singular values of an image's patches."""

import torch
from torch import Tensor, nn


class SpectralCrossAttention(nn.Module):
    """Lets the patches of an image set each other's singular values: S ← S ⊙ (1 + α ⊙ tanh(W_o attn(LN(S)))).

    α = 0.2 sigmoid(a) per channel, a starting at −2, so a layer changes no value by more than a fifth.

    Args:
        width: D, singular values a patch.
        num_heads: a divisor of D.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.gate = nn.Parameter(torch.full((width,), -2.0))

    @property
    def strength(self) -> Tensor:
        """α, (D,), in (0, 0.2)."""
        return 0.2 * self.gate.sigmoid()

    def forward(self, S: Tensor) -> Tensor:
        """The gains 1 + α ⊙ tanh(·) for singular values (B, L, D), same shape."""
        normed = self.norm(S)
        mixed, _ = self.attention(normed, normed, normed, need_weights=False)
        gains: Tensor = 1 + self.strength * mixed.tanh()
        return gains
