"""PatchSVAE: a spectral autoencoder of image patches whose latent is a set of points on a sphere."""

from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.linalg import gram_svd
from eigenscope.nn.autoencoders.patch_autoencoder import PatchAutoencoder

_GRAM_DTYPES = {"fp64": torch.float64, "fp32": torch.float32}


class SpectralCode(NamedTuple):
    """Code of PatchSVAE for the L = rows × columns patches of B images, row by row.

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
    def point_sets(self) -> dict[str, Tensor]:
        """The points that lie on spheres, by name."""
        return {"M": self.points}

    @property
    def shift(self) -> Tensor:
        """Mean of |S′ − S|, (B,)."""
        return (self.singular_values * (self.gains - 1)).abs().mean((-2, -1))

    @property
    def stages(self) -> dict[str, Tensor]:
        """The spectrum and its gains."""
        return {"singular values S": self.singular_values, "gains S′/S": self.gains}

    @property
    def decoded_points(self) -> Tensor:
        """M̂ = U diag(S′) Vᵀ, (B, L, V, D), computed as M V diag(S′/S) Vᵀ, which needs no division by S."""
        V = self.right_vectors.mT
        return self.points @ ((V * self.gains[..., None, :]) @ V.mT)


class PatchSVAE(PatchAutoencoder[SpectralCode]):
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
            σ is off by a share of at most (V + 8 D) 2^-25 ΣS² / σ²: below 3e-4 of the largest it is noise.
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
        super().__init__(num_points, dim, patch_size, hidden, depth, num_cross, num_heads, image_size)
        if gram_precision not in _GRAM_DTYPES:
            raise ValueError(f"gram_precision must be one of {', '.join(_GRAM_DTYPES)}, got {gram_precision!r}")
        self.gram_precision = gram_precision

    def read_out(self, points: Tensor, grid: tuple[int, int]) -> SpectralCode:
        """The thin SVD of M, (B, L, V, D), through its Gram matrix, and the gains of its singular values."""
        _, S, Vh = gram_svd(points, compute_dtype=_GRAM_DTYPES[self.gram_precision])
        assert Vh is not None
        return SpectralCode(points, S, self._gains(S), Vh, grid)
