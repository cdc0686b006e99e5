"""Battery array: hundreds of miniature PatchSVAEs as one network of stacked weights."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from eigenscope.nn.autoencoders.patch_svae import PatchSVAE, SpectralCode
from eigenscope.nn.autoencoders.patches import fold_patches, unfold_patches
from eigenscope.nn.batteries.stacked_layers import stack_layers


class BatteryArray(PatchSVAE):
    """K PatchSVAEs, the batteries, as one whose weights are stacks of theirs: no loop over batteries, one ``eigh``.

    Parameters have PatchSVAE's names and shapes with a leading K. Codes have a leading K too: M is (K, B, L, V, D).
    The batteries know nothing of each other, so the gradient of the *sum* of their losses is that of each loss for its
    own battery, and an optimizer that works element by element, such as Adam, trains each as if it were alone. (A norm
    over all gradients, as in gradient clipping, would couple them.) The defaults make 40,355 parameters a battery;
    57,251 with ``depth=2``.

    Args:
        num_batteries: K, at least 1.
        num_points: V, points a patch; this and the following are as for :class:`PatchSVAE`.
        dim: D, dimension of the space of the points.
        patch_size: side of a patch in pixels.
        hidden: width of the MLPs.
        depth: residual blocks in the encoder, and in the decoder.
        num_cross: layers of cross-attention on singular values.
        num_heads: heads of these.
        gram_precision: ``fp64`` or ``fp32``.
        image_size: side of the images, if it is to be checked now.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        num_batteries: int,
        num_points: int = 32,
        dim: int = 4,
        patch_size: int = 4,
        hidden: int = 64,
        depth: int = 1,
        num_cross: int = 2,
        num_heads: int | None = None,
        gram_precision: str = "fp64",
        image_size: int | None = None,
    ) -> None:
        if num_batteries < 1:
            raise ValueError(f"num_batteries must be at least 1, got {num_batteries}")
        arguments: Any = (
            num_points, dim, patch_size, hidden, depth, num_cross, num_heads, gram_precision, image_size,
        )  # fmt: skip
        super().__init__(*arguments)
        self._architecture = _architecture(self)
        others = [PatchSVAE(*arguments).state_dict() for _ in range(num_batteries - 1)]
        weights = {name: torch.stack([own, *(o[name] for o in others)]) for name, own in self.state_dict().items()}
        stack_layers(self)
        self._hold(weights)

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments that make a PatchSVAE like each of the batteries."""
        return self._architecture | {"gram_precision": self.gram_precision}

    @classmethod
    def from_weights(cls, architecture: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Self:
        """The batteries of stacked weights, which are not copied.

        Args:
            architecture: arguments of :class:`PatchSVAE`.
            weights: as in ``state_dict()``; their leading dimension is K.

        Raises:
            ValueError: an argument is out of range, or the weights are not those of this architecture; the message
                names the first that is not.
        """
        with torch.device("meta"):
            array = cls(1, **architecture)
        expected = {name: tuple(weight.shape[1:]) for name, weight in array.state_dict().items()}
        if strange := sorted(weights.keys() ^ expected.keys()):
            fault = "is missing" if strange[0] in expected else "has no place in this architecture"
            raise ValueError(f"weight {strange[0]} {fault}")
        count = max(weights["encoder.0.bias"].shape[:1], default=0)
        if count < 1:
            raise ValueError(f"num_batteries must be at least 1, got {count}")
        for name, shape in expected.items():
            given = weights[name]
            if given.shape != (count, *shape) or not given.is_floating_point():
                raise ValueError(
                    f"weight {name} must be real numbers {(count, *shape)}, got {given.dtype} {tuple(given.shape)}"
                )
        array._hold(weights)
        return array

    def battery(self, k: int) -> PatchSVAE:
        """A copy of battery k as a PatchSVAE of its own, the same weights to the bit.

        Raises:
            ValueError: there is no battery k.
        """
        self._check([k])
        with torch.device("meta"):
            battery = PatchSVAE(**self.architecture)
        weights = {name: weight[k].clone() for name, weight in self.state_dict().items()}
        battery.load_state_dict(weights, assign=True)
        return battery

    def select(self, ids: Sequence[int]) -> "BatteryArray":
        """A copy of some batteries, in the order of ``ids``, which may name one twice.

        Raises:
            ValueError: there is no battery of one of these ids, or no id.
        """
        self._check(ids)
        weights = {name: weight[list(ids)] for name, weight in self.state_dict().items()}
        return BatteryArray.from_weights(self.architecture, weights)

    def forward(self, images: Tensor) -> tuple[Tensor, SpectralCode]:
        """Reconstructions (K, B, 3, H, W) and codes of each battery's images (K, B, 3, H, W).

        Images (B, 3, H, W) are shown to every battery.

        Raises:
            ValueError: the images are not as described, or H or W is not a multiple of the patch size.
        """
        return super().forward(images)

    def encoder_output(self, images: Tensor) -> Tensor:
        """The rows of M before they are normalised, (K, B, L, V, D)."""
        self._check_images(images)
        batch = images.shape[-4]
        patches = unfold_patches(images.flatten(0, -4), self.patch_size)
        length, width = patches.shape[1:]
        own = patches.reshape(-1, batch * length, width).expand(self.num_batteries, -1, -1)
        numbers: Tensor = self.encoder(own)
        return numbers.view(self.num_batteries, batch, length, self.num_points, self.dim)

    def _stitched(self, code: SpectralCode) -> Tensor:
        numbers = code.decoded_points.flatten(-2).flatten(1, 2).to(next(self.decoder.parameters()).dtype)
        patches: Tensor = self.decoder(numbers)
        batch, length = code.points.shape[1:3]
        stitched = fold_patches(patches.reshape(-1, length, patches.shape[-1]), code.grid, self.patch_size)
        return stitched.view(self.num_batteries, batch, *stitched.shape[1:])

    def reconstruct(self, images: Tensor, tile: int | None = None) -> Tensor:
        """As :meth:`PatchSVAE.reconstruct`, of images as :meth:`forward` takes them: (K, B, 3, H, W)."""
        self._check_images(images)
        own = images.expand(self.num_batteries, *images.shape[-4:])
        return super().reconstruct(own, tile)

    def _hold(self, weights: Mapping[str, Tensor]) -> None:
        for path, weight in weights.items():
            layer, _, name = path.rpartition(".")
            setattr(self.get_submodule(layer), name, nn.Parameter(weight))
        self.num_batteries = len(weight)

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise ValueError("num_batteries must be at least 1, got no ids")
        for k in ids:
            if not 0 <= k < self.num_batteries:
                raise ValueError(f"there is no battery {k}; there are 0 to {self.num_batteries - 1}")

    def _check_images(self, images: Tensor) -> None:
        if images.ndim not in (4, 5) or (images.ndim == 5 and len(images) != self.num_batteries):
            raise ValueError(
                f"images must be ({self.num_batteries}, B, 3, H, W) or (B, 3, H, W), got {tuple(images.shape)}"
            )


def _architecture(net: PatchSVAE) -> dict[str, Any]:
    """The arguments that make another PatchSVAE of the same kind."""
    first = cast(nn.Linear, net.encoder[0])
    heads = [cast(nn.MultiheadAttention, layer.attention).num_heads for layer in net.cross_attention]
    return {
        "num_points": net.num_points,
        "dim": net.dim,
        "patch_size": net.patch_size,
        "hidden": first.out_features,
        "depth": len(net.encoder) - 3,  # beside the first layer, its activation and the last
        "num_cross": len(heads),
        "num_heads": heads[0] if heads else None,
        "gram_precision": net.gram_precision,
    }
