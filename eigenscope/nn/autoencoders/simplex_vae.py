"""SimplexVAE: a variational autoencoder of image patches with a real bottleneck between points on spheres."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from eigenscope.nn.autoencoders.companding import SCALES, compand, expand
from eigenscope.nn.autoencoders.patches import fold_patches, patch_grid, residual_mlp, unfold_patches
from eigenscope.nn.autoencoders.simplex_code import SimplexCode, at_least_float32, unit_groups
from eigenscope.nn.autoencoders.variational import bounded_log_variance, reparameterise, standard_normal
from eigenscope.noise.streams import Streams


class SimplexVAE(nn.Module):
    """A variational autoencoder of patches of any magnitude, whose layers are points on spheres.

    Encoder: patch x → u = asinh(x / s) with s = median |x| → MLP → V × D, rows of unit length: M → Linear → GELU →
    Linear → μ, log σ². Decoder: z → Linear → V × D, rows of unit length: H → MLP of H and log s → û, and
    x̂ = s sinh(û). P = 3 p² numbers pass through slots · D and the scale. Neither SVD nor float64 is in its graph.

    A row shorter than 1e-4 is divided by 1e-4 instead of its length, so that no gradient is amplified further.

    Args:
        num_points: V, points a patch of M and H.
        dim: D, dimension of the space whose sphere they lie on, and of a slot of the latent.
        patch_size: p, side of a patch in pixels.
        hidden: width of the MLPs, a multiple of D.
        depth: residual blocks in the encoder, and in the decoder.
        bottleneck: width of the hidden layer between M and the posterior, a multiple of D.
        slots: latent vectors of R^D a patch.
        image_size: side of the images, if it is to be checked now; images of other sizes are taken all the same.

    Attributes:
        point_set_shapes: point set to (V, D). The clouds ``mu`` and ``z`` have as many points as the batch gives;
            named are those of one image of ``image_size`` (of one patch if that is None), or 5 if these are fewer.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        num_points: int = 64,
        dim: int = 16,
        patch_size: int = 16,
        hidden: int = 768,
        depth: int = 4,
        bottleneck: int = 256,
        slots: int = 1,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_points": num_points, "dim": dim, "patch_size": patch_size, "hidden": hidden}
        sizes |= {"depth": depth, "bottleneck": bottleneck, "slots": slots}
        for name, value in sizes.items():
            if value < (least := 0 if name == "depth" else 1):
                raise ValueError(f"{name} must be at least {least}, got {value}")
            if name in ("hidden", "bottleneck") and value % dim:
                raise ValueError(f"{name} must be a multiple of dim, which is {dim}, got {value}")
        rows, columns = (1, 1) if image_size is None else patch_grid(image_size, image_size, patch_size)
        points, cloud = (num_points, dim), (max(5, rows * columns * slots), dim)
        encoded = {"M": points, "bottleneck": (bottleneck // dim, dim), "mu": cloud, "z": cloud}
        self.point_set_shapes = encoded | {"H": points, "decoder": (hidden // dim, dim)}
        self.dim = dim
        self.patch_size = patch_size
        self.slots = slots
        numbers = 3 * patch_size**2
        self.encoder = residual_mlp(numbers, hidden, num_points * dim, depth)
        nn.init.orthogonal_(cast(nn.Linear, self.encoder[-1]).weight)
        self.to_bottleneck = nn.Sequential(nn.Linear(num_points * dim, bottleneck), nn.GELU())
        self.posterior = nn.Linear(bottleneck, 2 * slots * dim)
        self.expand_latent = nn.Linear(slots * dim, num_points * dim)
        self.decoder = residual_mlp(num_points * dim + 1, hidden, numbers, depth)

    def forward(
        self, images: Tensor, sample: bool | None = None, generator: torch.Generator | Streams | None = None
    ) -> tuple[Tensor, SimplexCode]:
        """Reconstructions of images in companded space, and their code.

        Args:
            images: (B, 3, H, W).
            sample: decode z = μ + σ ε, or μ; None samples in training.
            generator: source of ε, see :func:`eigenscope.nn.autoencoders.variational.standard_normal`.

        Returns:
            û, (B, L, P) float32, to be compared with ``code.companded``, and the code. Errors as :meth:`encode`.
        """
        code = self.encode(images)
        if self.training if sample is None else sample:
            code = code._replace(z=reparameterise(code.mu, code.log_variance, generator))
        reconstructions, decoded_points, hidden = self._decode(code.z, code.log_scale)
        return reconstructions, code._replace(decoded_points=decoded_points, decoder=unit_groups(hidden, self.dim))

    def encode(self, images: Tensor) -> SimplexCode:
        """The code of images (B, 3, H, W), with z = μ.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        height, width = images.shape[-2:]
        grid = patch_grid(height, width, self.patch_size)
        companded, log_scale = compand(unfold_patches(images, self.patch_size))
        points = unit_groups(self.encoder(self._in(companded)), self.dim)
        implants = self._implanted_points(companded)
        groups = points if implants is None else torch.cat([points, implants], -2)
        hidden = self.to_bottleneck(self._in(groups.flatten(-2)))
        mu, raw = at_least_float32(self.posterior(hidden)).reshape(*hidden.shape[:2], 2, self.slots, self.dim).unbind(2)
        bottleneck = unit_groups(hidden, self.dim)
        code = SimplexCode(log_scale, companded, points, bottleneck, mu, bounded_log_variance(raw), mu, grid)
        return code._replace(implants=implants)

    def decode(self, z: Tensor, log_scale: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images (B, 3, H, W), float32, of latents.

        Args:
            z: (B, L, slots, D).
            log_scale: log s, (B, L).
            grid: (rows, columns), L in number.

        Raises:
            ValueError: a shape is another.
        """
        patches = (len(z), grid[0] * grid[1])
        for name, given, wanted in (("z", z, (*patches, self.slots, self.dim)), ("log_scale", log_scale, patches)):
            if given.shape != wanted:
                raise ValueError(f"{name} must be {wanted} for grid {grid}, got {tuple(given.shape)}")
        return self.to_images(self._decode(z, log_scale)[0], log_scale, grid)

    def to_images(self, companded: Tensor, log_scale: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images (B, 3, H, W) of patches u (B, L, P) and their scales (B, L)."""
        return fold_patches(expand(companded, log_scale), grid, self.patch_size)

    @torch.no_grad()
    def sample(
        self, count: int, size: tuple[int, int], log_scale: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images (count, 3, H, W) of latents drawn from the standard normal prior, patches independent of each other.

        Args:
            count: of images, at least 1.
            size: (H, W) in pixels, multiples of the patch size.
            log_scale: log s of all patches, of which the prior says nothing.
            generator: source of the draws, on any device; None is torch's global one.

        Raises:
            ValueError: an argument is out of range.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if not _LOG_SCALES[0] <= log_scale <= _LOG_SCALES[1]:
            raise ValueError(f"log_scale must be in [{_LOG_SCALES[0]:.4g}, {_LOG_SCALES[1]:.4g}], got {log_scale}")
        rows, columns = patch_grid(*size, self.patch_size)
        like = at_least_float32(self.posterior.bias.detach())
        z = standard_normal((count, rows * columns, self.slots, self.dim), like, generator)
        return self.decode(z, like.new_full(z.shape[:2], log_scale), (rows, columns))

    def _in(self, numbers: Tensor) -> Tensor:
        """Numbers in the dtype of the weights, lower than float32 where the whole network is."""
        return numbers.to(self.posterior.weight.dtype)

    def _implanted_points(self, companded: Tensor) -> Tensor | None:
        """Points of patches u (B, L, P) to be appended to M, (B, L, V', D), unit rows; here none."""
        return None

    def _decode(self, z: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """û, H and the first hidden layer of the decoder."""
        points = unit_groups(self.expand_latent(self._in(z.flatten(-2))), self.dim)
        condition = log_scale[..., None] / _LOG_SCALES[1]  # in [-1, 1]
        hidden = self.decoder[:2](self._in(torch.cat([points.flatten(-2), condition], -1)))
        return at_least_float32(self.decoder[2:](hidden)), points, hidden


_LOG_SCALES = [math.log(scale) for scale in SCALES]
