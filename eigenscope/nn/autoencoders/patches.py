"""Patch extraction and reassembly of images, and the residual MLP of the patch autoencoders."""

import torch.nn.functional as F
from torch import Tensor, nn


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of the patches of an image.

    Raises:
        ValueError: a side is not a positive multiple of the patch size.
    """
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ValueError(f"image size must be a multiple of patch_size {patch_size}, got {height}×{width}")
    return height // patch_size, width // patch_size


def unfold_patches(images: Tensor, patch_size: int) -> Tensor:
    """Cuts images (B, C, H, W) into patches (B, rows × columns, C·p·p), row by row; a patch is (C, p, p), flattened.

    Raises:
        ValueError: a side is not a multiple of the patch size.
    """
    height, width = images.shape[-2:]
    patch_grid(height, width, patch_size)
    return F.pixel_unshuffle(images, patch_size).flatten(2).mT


def fold_patches(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Puts patches (B, rows × columns, C·p·p) together again: the inverse of :func:`unfold_patches`."""
    return F.pixel_shuffle(patches.mT.reshape(len(patches), -1, *grid), patch_size)


class BoundarySmoothing(nn.Module):
    """x + Conv3×3(GELU(Conv3×3(x))) over a whole image, to smooth the seams between patches; the identity at first.

    Args:
        width: middle channels.
    """

    reach = 2  # pixels from which an output pixel depends on the input

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, 3, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to the same shape."""
        out: Tensor = images + self.layers(images)
        return out


class ResidualBlock(nn.Module):
    """x + Linear(GELU(Linear(LayerNorm(x)))) at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., width) to the same shape."""
        out: Tensor = x + self.layers(x)
        return out


def residual_mlp(inputs: int, hidden: int, outputs: int, depth: int) -> nn.Sequential:
    """Linear(inputs, hidden) → GELU → ``depth`` residual blocks → Linear(hidden, outputs)."""
    blocks = (ResidualBlock(hidden) for _ in range(depth))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), *blocks, nn.Linear(hidden, outputs))
