"""Implants: pretrained batteries inside the variational patch autoencoder, and their random controls."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from eigenscope.nn.autoencoders.simplex_code import unit_groups
from eigenscope.nn.autoencoders.simplex_vae import SimplexVAE
from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.nn.batteries.battery_container import load_batteries

ImplantSource = Literal["trained", "random", "shuffled"]
TRAINED_RANGE = 4.0
"""The bound of the numbers that batteries are trained on."""


class ImplantedVAE(SimplexVAE):
    """A :class:`SimplexVAE` with K batteries of a container beside its encoder and decoder, and mixers that learn.

    Encoder: u clamped to ±4 → the batteries' encoders, one batched product → K · V_b unit rows of R^{D_b} → Linear →
    V' × D, rows of unit length: the implants, which are appended to M. Decoder: z → Linear → K · V_b unit rows → the
    batteries' decoders → K patches, and û gains their sum weighted by a Linear map of z to K numbers.

    Batteries see u, and not the raw patch that they were trained on: u has the same size whatever the patch's
    magnitude, so that what they write is in the space of û as it is, and the latent stays independent of magnitude;
    to compand what they write of raw patches would multiply gradients by up to 1 / s = 1e4. Their singular values
    and smoothing are left out: neither their eigendecompositions nor float64 enter the graph.

    The weights by which the implants reach the bottleneck, and the batteries û, are zero at first: network and losses
    start equal to those of a SimplexVAE of the same seed, and so do the draws that follow construction. After the
    first step of the optimizer all of it learns.

    Args:
        container: path of the file that :func:`eigenscope.nn.save_batteries` wrote. It is read when the network is
            made, also for the controls and before a checkpoint is loaded, because it says what the shapes are.
        batteries: their ids in the container; None is all.
        source: ``trained``, or a control of the same shapes: ``random``, batteries as initialised, or ``shuffled``,
            the entries of each weight tensor of each battery in random order. Both draw from torch's global generator.
        implant_points: V', points a patch that the mixer makes of the batteries'.
        num_points: V; this and the following are as for :class:`SimplexVAE`.
        dim: D.
        patch_size: p, that of the batteries.
        hidden: width of the MLPs.
        depth: residual blocks in the encoder, and in the decoder.
        bottleneck: width of the hidden layer between points and the posterior.
        slots: latent vectors of R^D a patch.
        image_size: side of the images, if it is to be checked now.

    Attributes:
        implant_steps: optimizer steps that each battery was trained for, K numbers; 0 for ``random``.
        implant_mixtures: the noise types that it was trained on.

    Raises:
        ValueError: an argument is out of range, the container cannot be read, or a battery is not in it or of another
            patch size; the message says which.
    """

    def __init__(
        self,
        container: str,
        batteries: Sequence[int] | None = None,
        source: ImplantSource = "trained",
        implant_points: int = 32,
        num_points: int = 64,
        dim: int = 16,
        patch_size: int = 4,
        hidden: int = 768,
        depth: int = 4,
        bottleneck: int = 256,
        slots: int = 1,
        image_size: int | None = None,
    ) -> None:
        if source not in get_args(ImplantSource):
            raise ValueError(f"source must be one of {', '.join(get_args(ImplantSource))}, got {source!r}")
        if implant_points < 1:
            raise ValueError(f"implant_points must be at least 1, got {implant_points}")
        array, entries = load_batteries(Path(container), batteries)
        if array.patch_size != patch_size:
            raise ValueError(
                f"patch_size must be {array.patch_size}, that of the batteries in {container}, got {patch_size}"
            )
        super().__init__(num_points, dim, patch_size, hidden, depth, bottleneck, slots, image_size)
        first, *others = self.point_set_shapes.items()
        self.point_set_shapes = dict([first, ("implants", (implant_points, dim)), *others])
        self.implant_steps = tuple(0 if source == "random" else entry.steps for entry in entries)
        self.implant_mixtures = tuple(entry.mixture for entry in entries)
        numbers = array.num_batteries * array.num_points * array.dim
        with torch.random.fork_rng(devices=[]):
            _append_inputs(cast(nn.Linear, self.to_bottleneck[0]), implant_points * dim)
            self.mix_encoded = nn.Linear(numbers, implant_points * dim)
            self.mix_latent = nn.Linear(slots * dim, numbers)
            self.gate = nn.Linear(slots * dim, array.num_batteries)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
            if source == "random":
                array = BatteryArray(array.num_batteries, **array.architecture)
            if source == "shuffled":
                _shuffle(array)
        array = array.to(self.posterior.weight)
        self.battery_dim = array.dim
        self.batteries = nn.ModuleDict({"encoder": array.encoder, "decoder": array.decoder})

    def implant_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the batteries, (K, ...) each; not those of the mixers."""
        return self.batteries.parameters()

    def set_implants_trainable(self, trainable: bool) -> None:
        """Whether the weights of the batteries require gradient; the mixers keep learning."""
        self.batteries.requires_grad_(trainable)

    def _implanted_points(self, companded: Tensor) -> Tensor:
        B, L, P = companded.shape
        seen = self._in(companded.clamp(-TRAINED_RANGE, TRAINED_RANGE)).reshape(1, B * L, P)
        numbers = self.batteries["encoder"](seen.expand(self.gate.out_features, -1, -1))  # (K, B L, V_b D_b)
        rows = unit_groups(numbers, self.battery_dim).transpose(0, 1)
        return unit_groups(self.mix_encoded(self._in(rows.reshape(B, L, -1))), self.dim)

    def _decode(self, z: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        companded, points, hidden = super()._decode(z, log_scale)
        latent = self._in(z.flatten(-2))  # (B, L, slots D)
        rows = unit_groups(self.mix_latent(latent), self.battery_dim).flatten(-2)
        stacks = self._in(rows).reshape(rows.shape[0] * rows.shape[1], self.gate.out_features, -1).transpose(0, 1)
        written = self.batteries["decoder"](stacks).view(-1, *companded.shape)  # (K, B, L, P)
        return companded + torch.einsum("blk,kblp->blp", self.gate(latent), written), points, hidden


def _append_inputs(layer: nn.Linear, count: int) -> None:
    """Gives a layer further inputs, of weight zero."""
    zeros = layer.weight.new_zeros(layer.out_features, count)
    layer.weight = nn.Parameter(torch.cat([layer.weight.detach(), zeros], 1))
    layer.in_features += count


@torch.no_grad()
def _shuffle(array: BatteryArray) -> None:
    """Puts the entries of each battery's weight tensors, (K, ...), in random order within each tensor."""
    for weight in array.parameters():
        entries = weight.flatten(1)
        order = torch.rand(entries.shape, dtype=torch.float32).argsort(1)
        weight.copy_(entries.gather(1, order).view_as(weight))
