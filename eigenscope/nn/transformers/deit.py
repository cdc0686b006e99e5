"""DeiT for small images: a vision transformer with a CLS token, with or without SVD taps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.nn.hook_point import HookPoint
from eigenscope.nn.transformers.taps import SVDTaps, TapConfig


class SelfAttention(nn.Module):
    """Multi-head self-attention with a fused projection.

    Hook points: ``queries``, ``keys`` and ``values``, each (B, heads, tokens, width / heads).

    Args:
        width: channels of a token.
        num_heads: heads, a divisor of ``width``.
        dropout: probability, on the attention weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.queries = HookPoint()
        self.keys = HookPoint()
        self.values = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, tokens, width) to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = self.queries(q), self.keys(k), self.values(v)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer: attention and a GELU MLP, each added to its input after dropout.

    Args:
        width: channels of a token.
        num_heads: attention heads.
        mlp_width: hidden width of the MLP.
        dropout: probability, on attention weights, inside the MLP and on both residual branches.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, tokens, width) to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class DeiT(nn.Module):
    """Vision transformer as in DeiT (Touvron et al., *Training data-efficient image transformers*, ICML 2021).

    The defaults are DeiT-Small on 32×32 images with 21,526,372 parameters; with taps after layers 3, 6, 9 and 12 at
    rank 32 there are 21,676,900. The count includes a LayerNorm after the patch embedding that the published model
    holds and never calls; it is kept, frozen, so that counts and checkpoints correspond.

    Hook points: ``blocks.i.attention.{queries,keys,values}`` and those of ``taps``.

    Args:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels, a divisor of ``image_size``.
        in_channels: colour channels.
        num_classes: width of the output.
        width: channels of a token.
        depth: encoder layers.
        num_heads: attention heads, a divisor of ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        dropout: probability, after the positions, in every layer and in the head.
        taps: where to read spectral features that join the CLS token before the head; None for the plain model.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 100,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        taps: TapConfig | None = None,
    ) -> None:
        super().__init__()
        counts = {"image_size": image_size, "patch_size": patch_size, "in_channels": in_channels}
        counts |= {"num_classes": num_classes, "width": width, "depth": depth, "num_heads": num_heads}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size {image_size}, got {patch_size}")
        if width % num_heads:
            raise ValueError(f"num_heads must divide width {width}, got {num_heads}")
        if mlp_ratio * width < 1:
            raise ValueError(f"mlp_ratio must be positive, got {mlp_ratio}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.image_size, self.num_classes = image_size, num_classes
        num_patches = (image_size // patch_size) ** 2
        self.patch_embedding = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.unused_patch_norm = nn.LayerNorm(width).requires_grad_(False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, num_patches + 1, width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderLayer(width, num_heads, int(mlp_ratio * width), dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)  # before taps and head, so that both arms start from the same trunk at the same seed
        self.taps = SVDTaps(taps, width=width, num_tokens=num_patches, depth=depth) if taps is not None else None
        self.head = nn.Sequential(
            nn.Linear(width + (self.taps.num_features if self.taps is not None else 0), width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Dropout(dropout),
            nn.Linear(width, num_classes),
        )
        self.head.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: (B, in_channels, image_size, image_size), values in [0, 1].

        Returns:
            (B, num_classes) logits.
        """
        patches = self.patch_embedding(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        x = self.dropout(x + self.positions)
        tapped = []
        for layer, block in enumerate(self.blocks, start=1):
            x = block(x)
            if self.taps is not None and layer in self.taps.config.layers:
                tapped.append(x[:, 1:])
        summary = self.norm(x[:, 0])
        if self.taps is not None:
            summary = torch.cat([summary, self.taps(tapped).to(summary.dtype)], dim=-1)
        logits: Tensor = self.head(summary)
        return logits


def _initialise(module: nn.Module) -> None:
    """The published initialisation; embeddings and tap projections set their own."""
    if isinstance(module, SelfAttention):  # visited after its children, so this overrides the rule for nn.Linear
        nn.init.xavier_uniform_(module.qkv.weight)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
