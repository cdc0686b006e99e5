"""Linear readout in place of the singular value decomposition: the no-SVD ablation."""

from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from eigenscope.nn.autoencoders.patch_autoencoder import PatchAutoencoder

ReadoutNorm = Literal["none", "layer_norm"]
ReadoutInit = Literal["default", "orthogonal"]


class ReadoutCode(NamedTuple):
    """A learned readout of the patches; see :class:`~eigenscope.nn.autoencoders.patch_autoencoder.PatchCode`.

    Attributes:
        points: M, (B, L, V, D).
        readout: ω, (B, L, D), what takes the place of the singular values; (B, L, 0) without a bottleneck.
        gains: ω′ / ω, same shape, as the cross-attention sets them.
        decoded_points: M̂, (B, L, V, D).
        grid: (rows, columns).
    """

    points: Tensor
    readout: Tensor
    gains: Tensor
    decoded_points: Tensor
    grid: tuple[int, int]

    @property
    def point_sets(self) -> dict[str, Tensor]:
        """The points that lie on spheres, by name."""
        return {"M": self.points}

    @property
    def shift(self) -> Tensor:
        """Mean of |ω′ − ω|, (B,); 0 without a bottleneck."""
        if not self.readout.shape[-1]:
            return self.points.new_zeros(len(self.points))
        return (self.readout * (self.gains - 1)).abs().mean((-2, -1))

    @property
    def stages(self) -> dict[str, Tensor]:
        """ω and the gains."""
        return {"readout ω": self.readout, "gains ω′/ω": self.gains} if self.readout.shape[-1] else {}


class LinearReadoutAutoencoder(PatchAutoencoder[ReadoutCode]):
    """PatchSVAE with its SVD replaced: ω = Linear(V·D, D)(M), cross-attention on ω, M̂ = Linear(D, V·D)(ω′).

    Everything else is PatchSVAE's. The five reported rounds are choices of the last four arguments.

    Args:
        num_points: V, points a patch, at least D.
        dim: D, dimension of the space whose sphere they lie on, and of ω.
        patch_size: side of a patch in pixels.
        hidden: width of the MLPs.
        depth: residual blocks in the encoder, and in the decoder.
        num_cross: layers of cross-attention on ω; without a bottleneck there are none.
        num_heads: heads of these; None is 2 for D ≤ 8 and 4 above.
        readout_norm: of ω, ``none`` or ``layer_norm``.
        readout_init: of the two linear layers, torch's ``default``, or ``orthogonal`` with gain 0.5.
        normalise: give the rows of M̂ unit length, which bounds it.
        bottleneck: False is the control: M̂ = Linear(V·D, V·D)(M), without ω.
        image_size: side of the images, if it is to be checked now; images of other sizes are taken all the same.

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
        num_cross: int = 2,
        num_heads: int | None = None,
        readout_norm: ReadoutNorm = "none",
        readout_init: ReadoutInit = "default",
        normalise: bool = False,
        bottleneck: bool = True,
        image_size: int | None = None,
    ) -> None:
        super().__init__(
            num_points, dim, patch_size, hidden, depth, num_cross if bottleneck else 0, num_heads, image_size
        )
        for name, value, kinds in (
            ("readout_norm", readout_norm, ReadoutNorm),
            ("readout_init", readout_init, ReadoutInit),
        ):
            if value not in get_args(kinds):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {value!r}")
        numbers = num_points * dim
        self.normalise = normalise
        self.bottleneck = bottleneck
        self.readout = nn.Linear(numbers, dim if bottleneck else numbers)
        self.readout_norm = nn.LayerNorm(dim) if readout_norm == "layer_norm" and bottleneck else nn.Identity()
        self.expansion = nn.Linear(dim, numbers) if bottleneck else nn.Identity()
        if readout_init == "orthogonal":
            for layer in (self.readout, self.expansion):
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight, gain=0.5)

    def read_out(self, points: Tensor, grid: tuple[int, int]) -> ReadoutCode:
        """The readout of M, (B, L, V, D)."""
        omega = self.readout_norm(self.readout(points.flatten(-2).to(self.readout.weight.dtype)))
        gains = self._gains(omega)
        decoded = self.expansion((omega * gains).to(omega.dtype)).unflatten(-1, points.shape[-2:])
        if self.normalise:
            decoded = F.normalize(decoded, dim=-1)
        if not self.bottleneck:
            omega = gains = omega[..., :0]
        return ReadoutCode(points, omega, gains, decoded, grid)
