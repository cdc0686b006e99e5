"""Base class of patch autoencoders: encoding to points on a sphere, decoding, and tiling of large images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.nn.autoencoders.patches import BoundarySmoothing, fold_patches, patch_grid, residual_mlp, unfold_patches


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
        """The gains 1 + α ⊙ tanh(·) for singular values (B, L, D), same shape, at least float32."""
        normed = self.norm(S)
        mixed, _ = self.attention(normed, normed, normed, need_weights=False)
        change: Tensor = self.strength * mixed.tanh()
        return 1 + change.to(torch.promote_types(change.dtype, torch.float32))  # near 1, where half precision is coarse


class PatchCode(Protocol):
    """Code of an encoder for the L = rows × columns patches of B images, row by row."""

    @property
    def points(self) -> Tensor:
        """M, (B, L, V, D): V points on the unit sphere of R^D a patch."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns)."""

    @property
    def decoded_points(self) -> Tensor:
        """M̂, (B, L, V, D), what the decoder sees."""

    @property
    def shift(self) -> Tensor:
        """By how much cross-attention moved what it works on, (B,), a mean of magnitudes."""

    @property
    def stages(self) -> Mapping[str, Tensor]:
        """Names to the tensors (B, ...) between M and M̂, in the order in which they are computed."""


class PatchAutoencoder[Code: PatchCode](nn.Module, ABC):
    """Patch → MLP → V × D numbers, rows normalised: M → :meth:`read` → M̂ → MLP → patch, then boundary smoothing.

    Args:
        num_points: V, points a patch.
        dim: D, dimension of the space whose sphere they lie on.
        patch_size: side of a patch in pixels.
        hidden: width of the MLPs.
        depth: residual blocks in the encoder, and in the decoder.
        num_cross: layers of cross-attention.
        num_heads: heads of these; None is 2 for D ≤ 8 and 4 above.
        image_size: side of the images, if it is to be checked now; images of other sizes are taken all the same.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        num_points: int,
        dim: int,
        patch_size: int,
        hidden: int,
        depth: int,
        num_cross: int,
        num_heads: int | None,
        image_size: int | None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("dim", dim, 1),
            ("num_points", num_points, dim),
            ("patch_size", patch_size, 1),
            ("hidden", hidden, 1),
            ("depth", depth, 0),
            ("num_cross", num_cross, 0),
        ):
            if value < least:
                limit = "dim, " if name == "num_points" else ""
                raise ValueError(f"{name} must be at least {limit}{least}, got {value}")
        heads = num_heads if num_heads is not None else (2 if dim <= 8 else 4)
        if num_cross and (heads < 1 or dim % heads):
            raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and {heads} heads")
        if image_size is not None:
            patch_grid(image_size, image_size, patch_size)
        self.point_set_shapes = {"M": (num_points, dim)}
        self.num_points = num_points
        self.dim = dim
        self.patch_size = patch_size
        numbers = 3 * patch_size**2
        self.encoder = residual_mlp(numbers, hidden, num_points * dim, depth)
        nn.init.orthogonal_(cast(nn.Linear, self.encoder[-1]).weight)
        self.cross_attention = nn.ModuleList(SpectralCrossAttention(dim, heads) for _ in range(num_cross))
        self.decoder = residual_mlp(num_points * dim, hidden, numbers, depth)
        self.smoothing = BoundarySmoothing(16 if patch_size >= 16 else 8)

    def _gains(self, S: Tensor) -> Tensor:
        """The factors by which cross-attention changes (B, L, D) numbers, same shape, at least float32."""
        dtype = next(self.decoder.parameters()).dtype  # lower than that of S where the whole network is
        gains = torch.ones_like(S, dtype=torch.promote_types(S.dtype, torch.float32))
        for layer in self.cross_attention:
            gains = gains * layer((S * gains).to(dtype)).to(gains.dtype)
        return gains

    def forward(self, images: Tensor) -> tuple[Tensor, Code]:
        """Reconstructions of ``images`` (B, 3, H, W), same shape, and their code."""
        code = self.encode(images)
        return self.decode(code), code

    def encoder_output(self, images: Tensor) -> Tensor:
        """The rows of M before they are normalised, (B, L, V, D).

        Raises:
            ValueError: the images are not (B, 3, H, W) floating point.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be real (B, 3, H, W), got {images.dtype} of shape {tuple(images.shape)}")
        numbers: Tensor = self.encoder(unfold_patches(images, self.patch_size))
        return numbers.reshape(*numbers.shape[:-1], self.num_points, self.dim)

    def encode(self, images: Tensor) -> Code:
        """The code of images (B, 3, H, W).

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        height, width = images.shape[-2:]
        grid = patch_grid(height, width, self.patch_size)
        raw = self.encoder_output(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.read_out(F.normalize(raw.to(torch.promote_types(raw.dtype, torch.float32)), dim=-1), grid)

    @abstractmethod
    def read_out(self, points: Tensor, grid: tuple[int, int]) -> Code:
        """What the decoder is to see of M, (B, L, V, D) at least float32."""

    def decode(self, code: Code) -> Tensor:
        """Images (B, 3, H, W) of a code."""
        images: Tensor = self.smoothing(self._stitched(code))
        return images

    def _stitched(self, code: Code) -> Tensor:
        numbers = code.decoded_points.flatten(-2).to(next(self.decoder.parameters()).dtype)
        return fold_patches(self.decoder(numbers), code.grid, self.patch_size)

    @torch.no_grad()
    def encode_tiled(self, images: Tensor, tile: int) -> Iterator[tuple[int, int, Code]]:
        """Encodes large images tile by tile, holding one tile's activations at a time.

        Cross-attention reaches the patches of a tile only, where :meth:`encode` reaches those of the image.

        Args:
            images: (B, 3, H, W) on any device; tiles are moved to the network's.
            tile: side of a tile in pixels, a multiple of the patch size; the last ones may be smaller.

        Yields:
            the top and left pixel of a tile, and its code.

        Raises:
            ValueError: the tile or the image is not a multiple of the patch size.
        """
        if tile < 1 or tile % self.patch_size:
            raise ValueError(f"tile must be a multiple of {self.patch_size}, the patch size, got {tile}")
        height, width = images.shape[-2:]
        patch_grid(height, width, self.patch_size)
        device = self._device()
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                yield top, left, self.encode(images[..., top : top + tile, left : left + tile].to(device))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, tile: int | None = None) -> Tensor:
        """Reconstructions of images (B, 3, H, W), same shape and device, without gradient.

        Args:
            images: on any device.
            tile: work in tiles of this side, in bounded memory; see :meth:`encode_tiled`. Seams between tiles are
                smoothed like those between patches. None takes the image as a whole.

        Raises:
            ValueError: the tile or the image is not a multiple of the patch size.
        """
        if tile is None:
            whole: Tensor = self.decode(self.encode(images.to(self._device())))
            return whole.to(images.device)
        stitched = torch.empty_like(images)
        for top, left, code in self.encode_tiled(images, tile):
            stitched[..., top : top + tile, left : left + tile] = self._stitched(code).to(images.device)
        smooth = torch.empty_like(images)
        height, width = images.shape[-2:]
        reach = self.smoothing.reach
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                above, before = min(top, reach), min(left, reach)
                part = stitched[..., top - above : top + tile + reach, left - before : left + tile + reach]
                mended = self.smoothing(part.to(self._device()))[..., above : above + tile, before : before + tile]
                smooth[..., top : top + tile, left : left + tile] = mended.to(images.device)
        return smooth

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def trace(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a forward pass, (B, ...), with their names, in the order in which they are computed."""
        yield "encoder output", self.encoder_output(images)
        code = self.encode(images)
        yield "points M", code.points
        yield from code.stages.items()
        yield "decoded points M̂", code.decoded_points
        yield "reconstructions", self.decode(code)
