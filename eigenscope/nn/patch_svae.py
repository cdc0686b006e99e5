"""PatchSVAE: a spectral autoencoder of image patches whose latent is a set of points on a sphere."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.linalg import gram_svd
from eigenscope.nn.patches import BoundarySmoothing, fold_patches, patch_grid, unfold_patches
from eigenscope.nn.residual_mlp import residual_mlp
from eigenscope.nn.spectral_attention import SpectralCrossAttention


class SpectralCode(NamedTuple):
    """What PatchSVAE knows of the L = rows × columns patches of B images, row by row.

    Attributes:
        points: M, (B, L, V, D): V points on the unit sphere of R^D a patch.
        singular_values: S of M, (B, L, D), descending.
        gains: S′ / S, (B, L, D), as the cross-attention sets them; 1 without it.
        right_vectors: Vᵀ of M = U diag(S) Vᵀ, (B, L, D, D), with the solver's signs.
        grid: (rows, columns).
    """

    points: Tensor
    singular_values: Tensor
    gains: Tensor
    right_vectors: Tensor
    grid: tuple[int, int]

    @property
    def sectors(self) -> dict[str, Tensor]:
        """The points that lie on spheres, by name."""
        return {"M": self.points}

    @property
    def coordinated(self) -> Tensor:
        """S′, the singular values that the decoder sees, (B, L, D)."""
        return self.singular_values * self.gains

    @property
    def decoded_points(self) -> Tensor:
        """M̂ = U diag(S′) Vᵀ, (B, L, V, D), computed as M V diag(S′/S) Vᵀ, which needs no division by S."""
        V = self.right_vectors.mT
        return self.points @ ((V * self.gains[..., None, :]) @ V.mT)


class PatchSVAE(nn.Module):
    """A spectral autoencoder: each patch becomes V points on a sphere, and its decoder sees their matrix M̂.

    Encoder: patch → MLP → V × D, rows normalised to unit length: M. Its thin SVD goes through the Gram matrix MᵀM;
    cross-attention among the patches of an image changes the singular values by a few per cent; the decoder maps
    M̂ = U diag(S′) Vᵀ to the patch. Parameters: 16,942,419 with the defaults (Fresnel, Johanna); 2,557,539 with
    ``num_points=48, dim=4, patch_size=4, hidden=384`` (Freckles).

    What it is not: M̂ passes V·D numbers on, and equals M with the gates closed, so the SVD is no bottleneck; and unit
    rows fix ΣS² = V, so the spectrum does not carry a patch's magnitude.

    Args:
        num_points: V, points a patch, at least D.
        dim: D, dimension of the space whose sphere they lie on.
        patch_size: side of a patch in pixels.
        hidden: width of the MLPs.
        depth: residual blocks in the encoder, and in the decoder.
        num_cross: layers of cross-attention on singular values; 0 leaves them alone.
        num_heads: heads of these; None is 2 for D ≤ 8 and 4 above.
        gram_precision: ``fp64`` or ``fp32``, of the Gram matrix and its eigenvectors. In fp32 a singular value
            below 3e-4 of the largest is noise; of an untrained network S is off by 1e-6 of itself at most.
        image_size: side of the images, if it is to be checked now; images of other sizes are taken all the same.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        num_points: int = 256,
        dim: int = 16,
        patch_size: int = 16,
        hidden: int = 768,
        depth: int = 4,
        num_cross: int = 2,
        num_heads: int | None = None,
        gram_precision: str = "fp64",
        image_size: int | None = None,
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
        if gram_precision not in _GRAM_DTYPES:
            raise ValueError(f"gram_precision must be one of {', '.join(_GRAM_DTYPES)}, got {gram_precision!r}")
        if image_size is not None:
            patch_grid(image_size, image_size, patch_size)
        self.sector_shapes = {"M": (num_points, dim)}
        self.num_points = num_points
        self.dim = dim
        self.patch_size = patch_size
        self.gram_precision = gram_precision
        numbers = 3 * patch_size**2
        self.encoder = residual_mlp(numbers, hidden, num_points * dim, depth)
        nn.init.orthogonal_(cast(nn.Linear, self.encoder[-1]).weight)
        self.cross_attention = nn.ModuleList(SpectralCrossAttention(dim, heads) for _ in range(num_cross))
        self.decoder = residual_mlp(num_points * dim, hidden, numbers, depth)
        self.smoothing = BoundarySmoothing(16 if patch_size >= 16 else 8)

    def forward(self, images: Tensor) -> tuple[Tensor, SpectralCode]:
        """Reconstructions of ``images`` (B, 3, H, W), same shape, and their code."""
        code = self.encode(images)
        return self.decode(code), code

    def encoder_output(self, images: Tensor) -> Tensor:
        """The rows of M before they are normalised, (B, L, V, D)."""
        numbers: Tensor = self.encoder(unfold_patches(images, self.patch_size))
        return numbers.reshape(*numbers.shape[:-1], self.num_points, self.dim)

    def encode(self, images: Tensor) -> SpectralCode:
        """The code of images (B, 3, H, W).

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        height, width = images.shape[-2:]
        grid = patch_grid(height, width, self.patch_size)
        raw = self.encoder_output(images)
        with torch.autocast(images.device.type, enabled=False):
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            points = F.normalize(raw, dim=-1)
            _, S, Vh = gram_svd(points, compute_dtype=_GRAM_DTYPES[self.gram_precision])
            assert Vh is not None
            gains = torch.ones_like(S)
            for layer in self.cross_attention:
                gains = gains * layer(S * gains)
        return SpectralCode(points, S, gains, Vh, grid)

    def decode(self, code: SpectralCode) -> Tensor:
        """Images (B, 3, H, W) of a code."""
        images: Tensor = self.smoothing(self._stitched(code))
        return images

    def _stitched(self, code: SpectralCode) -> Tensor:
        return fold_patches(self.decoder(code.decoded_points.flatten(-2)), code.grid, self.patch_size)

    @torch.no_grad()
    def encode_tiled(self, images: Tensor, tile: int) -> Iterator[tuple[int, int, SpectralCode]]:
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


_GRAM_DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
