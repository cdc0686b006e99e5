"""Code of a SimplexVAE: the latent, and the point sets on spheres around it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eigenscope.nn.autoencoders.variational import kl_divergence

_SHORTEST = 1e-4


class SimplexCode(NamedTuple):
    """Code of SimplexVAE for the L = rows × columns patches of B images, row by row; float32.

    Attributes:
        log_scale: log s, (B, L), the magnitude, carried beside the latent.
        companded: u, (B, L, P), what is to be reconstructed.
        points: M, (B, L, V, D), unit rows.
        bottleneck: its hidden layer, (B, L, bottleneck / D, D), groups scaled to unit length.
        mu: mean of the posterior, (B, L, slots, D).
        log_variance: its log σ², (B, L, slots, D).
        z: what the decoder sees, (B, L, slots, D).
        grid: (rows, columns).
        decoded_points: H, (B, L, V, D), unit rows; None before decoding.
        decoder: first hidden layer of the decoder, (B, L, hidden / D, D), groups of unit length; None before decoding.
        implants: points appended to M, (B, L, V', D), unit rows, see :class:`eigenscope.nn.ImplantedVAE`; else None.
    """

    log_scale: Tensor
    companded: Tensor
    points: Tensor
    bottleneck: Tensor
    mu: Tensor
    log_variance: Tensor
    z: Tensor
    grid: tuple[int, int]
    decoded_points: Tensor | None = None
    decoder: Tensor | None = None
    implants: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """KL divergence from the standard normal distribution by dimension, (B, L, slots · D) in nats."""
        return kl_divergence(self.mu, self.log_variance).flatten(-2)

    @property
    def point_sets(self) -> dict[str, Tensor]:
        """The points on spheres by name, (..., V, D), in the order of computation.

        ``mu`` and ``z`` are clouds over the batch, (1, B · L · slots, D): copies of unit length, because the KL term
        needs their radius.
        """
        encoded = {"M": self.points, "implants": self.implants, "bottleneck": self.bottleneck}
        point_sets = encoded | {"mu": _cloud(self.mu), "z": _cloud(self.z), "H": self.decoded_points}
        return {name: points for name, points in (point_sets | {"decoder": self.decoder}).items() if points is not None}


def at_least_float32(x: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_groups(x: Tensor, dim: int) -> Tensor:
    """(..., V · D) as V rows of unit length, (..., V, D)."""
    return F.normalize(at_least_float32(x).reshape(*x.shape[:-1], -1, dim), dim=-1, eps=_SHORTEST)


def _cloud(latents: Tensor) -> Tensor:
    return F.normalize(latents, dim=-1, eps=_SHORTEST).flatten(0, -2)[None]
