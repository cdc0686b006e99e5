"""Interfaces between packages: protocols of Lightning modules, data modules and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from eigenscope.charts import Chart
    from eigenscope.nn.batteries.battery_array import BatteryArray

PointSets = Mapping[str, Tensor]
"""Name to points on a sphere, (..., V, D): V unit vectors of R^D, over any leading shape of matrices."""

LossTransform = Callable[[Tensor, PointSets], Tensor]
"""Maps a training loss and the point sets of the same forward pass, with gradients, to the loss to be used."""


@runtime_checkable
class HasPointSets(Protocol):
    """A module with point sets on spheres, and a list of loss transforms that callbacks may extend with loss terms.

    Attributes:
        point_set_shapes: point set to (V, D), known before the first batch.
        loss_transforms: applied to the loss in every training step, in order.
    """

    point_set_shapes: Mapping[str, tuple[int, int]]
    loss_transforms: list[LossTransform]


@runtime_checkable
class Autoencoding(Protocol):
    """A module that reconstructs images."""

    def autoencode(self, images: Tensor) -> tuple[Tensor, PointSets]:
        """The reconstructions of images (B, 3, H, W), same shape, and the latents on spheres."""


@runtime_checkable
class Traced(Protocol):
    """A module that yields its intermediate tensors in order, for NaN/Inf localisation."""

    def trace(self, batch: Any) -> Iterable[tuple[str, Tensor]]:
        """The tensors of a step, (B, ...), with their names, in the order in which they are computed."""

    def describe(self, batch: Any, sample: int) -> str:
        """What a person calls the sample at this place of the batch, such as its noise type."""


@runtime_checkable
class KeepsBest(Protocol):
    """A callback that keeps the best value of the monitored metric."""

    def restart_best(self) -> None:
        """Resets the best score: scores from this epoch on are not comparable with those before."""


@runtime_checkable
class HasCharts(Protocol):
    """A module or callback that declares TensorBoard charts of its metrics."""

    def charts(self, logged: Collection[str]) -> Sequence[Chart]:
        """Charts of tags that this run has logged, and of no others; the same ones always in the same order.

        Args:
            logged: tags that were logged through the module; who writes to a logger directly knows its own.
        """


@runtime_checkable
class HasBatteries(Protocol):
    """A module that trains batteries, each on kinds of images of its own.

    Attributes:
        mixtures: names of the kinds that each of the K batteries is trained on.
        label_names: of all T kinds.
        cross_scores: mean squared errors in the latest validation, (K, T), nan for a kind without images; None before.
    """

    mixtures: Sequence[Sequence[str]]
    label_names: Sequence[str]
    cross_scores: Tensor | None

    @property
    def batteries(self) -> BatteryArray:
        """The K batteries."""

    @property
    def steps(self) -> Tensor:
        """Optimizer steps that each has had images for, (K,) int64."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A data module with a fingerprint (checksum) of its data."""

    def fingerprint(self) -> dict[str, str]:
        """Set to a short digest and its size, the same for equal data; to be called after ``setup``, and cheap."""
