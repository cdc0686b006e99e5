"""Lightning module of the spectral VAE, the variational successor of the spectral autoencoder."""

import statistics
from collections.abc import Collection, Iterator
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.base import EvaluatedModule, Stage
from eigenscope.lightning_modules.metrics import FractionVarianceUnexplained, GroupedMean, MeanLoss
from eigenscope.lightning_modules.point_set_geometry import LatentGeometry
from eigenscope.nn import SimplexCode, SimplexVAE
from eigenscope.nn.autoencoders.reconstruction_errors import ReconstructionLoss, reconstruction_errors, student_t_errors
from eigenscope.nn.autoencoders.variational import (
    active_dimensions,
    free_bits,
    has_collapsed,
    kl_weight,
    reparameterise,
)
from eigenscope.noise.streams import Streams, stream_key
from eigenscope.protocols import LossTransform, PointSets

CompandedLoss = Literal["mse", "huber", "log_cosh", "student_t"]
_TRAINING, _VALIDATION = stream_key(0x7A, 0), stream_key(0x7A, 1)  # z, apart from all else that a seed addresses


class SpectralVAEModule(EvaluatedModule):
    """Training of a :class:`~eigenscope.nn.SimplexVAE`: reconstruction in companded space plus β times the KL term.

    The loss is the mean over numbers of the reconstruction error of u = asinh(x / s), plus β times the mean over the
    dimensions of a patch's latent of max(KL_j, free bits), β rising from 0 over ``warmup_steps``.

    The latent of a training image is drawn from (run seed, epoch, batch, place in the batch over all ranks), that of a
    validation image from its place in the set: ranks never share a draw, two at half the batch draw what one at the
    whole would, and a resumed run draws what the uninterrupted one would have.

    Logs once an epoch ``{train,val,test}/loss``, the reconstruction error, and ``/kl``, nats a patch; in validation
    ``val/fvu``, the mean over labels of the fraction of variance unexplained in companded space, and
    ``val_fvu/<label>``; ``val_raw_median/<label>`` and ``val_raw_q90/<label>``, the median and the 90 % quantile of
    |x̂ − x| of an image; ``val/active_dimensions`` (of more than 0.1 nat, or twice the free bits),
    ``val/kl_per_dimension`` in nats, ``val/collapsed`` (1 if fewer than half are active, which is also said once); and
    ``geometry_<point_set>/*`` of every point set. A network with implants adds ``implants/steps``, the optimizer steps
    that its batteries were trained for, all together.

    Args:
        net: the network.
        loss: ``mse``, ``huber``, ``log_cosh``, or ``student_t``, whose scale is learned.
        degrees_of_freedom: of Student's t.
        beta: weight of the KL term after warm-up.
        warmup_steps: over which it rises.
        free_bits: nats a dimension that cost nothing.
        *optimization, **more: ``optimizer``, ``lr_scheduler`` and ``lr_interval``, see BaseModule.

    Raises:
        ValueError: an argument is out of range.
    """

    net: SimplexVAE

    def __init__(
        self,
        net: SimplexVAE,
        *optimization: Any,
        loss: CompandedLoss = "huber",
        degrees_of_freedom: float = 4.0,
        beta: float = 0.01,
        warmup_steps: int = 300,
        free_bits: float = 0.05,
        **more: Any,
    ) -> None:
        super().__init__(net, *optimization, **more)
        if loss not in get_args(CompandedLoss):
            raise ValueError(f"loss must be one of {', '.join(get_args(CompandedLoss))}, got {loss!r}")
        if not degrees_of_freedom > 0:
            raise ValueError(f"degrees_of_freedom must be above 0, got {degrees_of_freedom}")
        for name, value in (("beta", beta), ("warmup_steps", warmup_steps), ("free_bits", free_bits)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.loss = loss
        self.degrees_of_freedom = degrees_of_freedom
        self.beta = beta
        self.warmup_steps = warmup_steps
        self.free_bits = free_bits
        self.log_sigma = nn.Parameter(torch.zeros(())) if loss == "student_t" else None
        self.point_set_shapes = net.point_set_shapes
        self.loss_transforms: list[LossTransform] = []
        self.geometry = LatentGeometry(net.point_set_shapes)
        figures = [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "kl")]
        self.means = nn.ModuleDict({name: MeanLoss() for name in figures})
        self.kl_by_dimension = GroupedMean(net.slots * net.dim)
        self.label_names: tuple[str, ...] = ()
        self._warned = False
        self._seed = 0
        self._validated = 0  # images of this rank, in the validation under way

    @property
    def trained(self) -> nn.Module:
        """All of this module: the scale of the loss may be trained too."""
        return self

    def setup(self, stage: str) -> None:
        """Takes the run's seed, and creates the metrics by label."""
        self._seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))
        self.label_names = tuple(getattr(getattr(self.trainer, "datamodule", None), "label_names", ()))
        groups = max(1, len(self.label_names))
        self.unexplained = FractionVarianceUnexplained(groups)
        self.raw = nn.ModuleDict({f"val_raw_{name}": GroupedMean(groups) for name in ("median", "q90")})

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions of images (B, 3, H, W), same shape, through μ."""
        return self.autoencode(images)[0]

    def autoencode(self, images: Tensor) -> tuple[Tensor, PointSets]:
        """Reconstructions of images (B, 3, H, W), same shape, through μ, and the point sets."""
        companded, code = self.net(images, sample=False)
        return self.net.to_images(companded, code.log_scale, code.grid), code.point_sets

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, with the loss terms of callbacks."""
        images, _ = batch
        key = stream_key(_TRAINING, self._seed, self.current_epoch, batch_idx)
        companded, code = self.net(images, sample=True, generator=self._streams(key, images))
        if self.global_step == 0:
            self.geometry.note_untrained(code.point_sets)
        loss = self._record("train", companded, code)
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        weight = kl_weight(self.global_step, self.beta, self.warmup_steps)
        loss = loss + weight * free_bits(code.kl, self.free_bits, self._mean_over_ranks(code.kl)).mean()
        for transform in self.loss_transforms:
            loss = transform(loss, code.point_sets)
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``reconstructions`` (B, 3, H, W) through μ, their mean squared error ``mse`` (B,) and ``labels`` (B,)."""
        images, labels = batch
        reconstructions = self(images)
        errors = reconstruction_errors(reconstructions, images, "mse")
        return {"reconstructions": reconstructions, "mse": errors, "labels": labels}

    def on_validation_epoch_start(self) -> None:
        """Counts from the first image again."""
        self._validated = 0

    def evaluate(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> None:
        """Updates the metrics of a stage with a batch; those by label and of the latent in validation only."""
        companded, code = self.net(batch[0], sample=False)
        self._record(stage, companded, code)
        if stage == "val":
            self._evaluate_latent(*batch, companded, code)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics by label, of the latent and of the geometry; says once if the posterior has collapsed."""
        fractions = {self._name(group): float(value) for group, value in self.unexplained.compute().items()}
        self.unexplained.reset()
        figures = {f"val_fvu/{name}": value for name, value in fractions.items()}
        figures["val/fvu"] = statistics.fmean(fractions.values())
        for key, metric in self.raw.items():
            means = cast(GroupedMean, metric).compute()
            cast(GroupedMean, metric).reset()
            figures |= {f"{key}/{self._name(group)}": float(mean) for group, mean in means.items()}
        steps = getattr(self.net, "implant_steps", None)
        if steps is not None:
            figures["implants/steps"] = float(sum(steps))
        self.log_dict(figures | self._latent_figures() | self.geometry.compute(), sync_dist=True)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation, the latent, errors by label, and the geometry of the point sets."""
        single = {
            "fraction of variance unexplained": "val/fvu",
            "active dimensions": "val/active_dimensions",
            "KL (nats a dimension)": "val/kl_per_dimension",
        }
        wanted = [
            train_and_val("reconstruction error, companded", "loss"),
            train_and_val("KL (nats a patch)", "kl"),
            *(Chart("Training and validation", title, (tag,)) for title, tag in single.items()),
            *(
                Chart("By label", f"{name}: fraction of variance unexplained", (f"val_fvu/{name}",))
                for name in self.label_names or ("all",)
            ),
        ]
        return present(wanted, logged) + self.geometry.charts(logged)

    def trace(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a step in the order in which they are computed, (B, ...) each, through μ."""
        images, _ = batch
        yield "target images", images
        companded, code = self.net(images, sample=False)
        yield "companded patches u", code.companded
        yield "points M", code.points
        yield "mean μ", code.mu
        yield "log variance", code.log_variance
        yield "decoded points H", cast(Tensor, code.decoded_points)
        yield "reconstructions û", companded
        yield "reconstruction loss", self._errors(companded, code.companded)

    def describe(self, batch: tuple[Tensor, Tensor], sample: int) -> str:
        """The noise type, or whatever the label of a sample is called."""
        return self._name(int(batch[1][sample])) if self.label_names else f"label {int(batch[1][sample])}"

    def _mean_over_ranks(self, kl: Tensor) -> Tensor | None:
        """The mean KL divergence of each dimension (d,) over the whole batch of (B, L, d); None if that is all here."""
        if self.trainer.world_size == 1:
            return None
        mean: Any = self.trainer.strategy.reduce(kl.detach().flatten(0, -2).mean(0), reduce_op="mean")
        return cast(Tensor, mean)

    def _streams(self, key: int, images: Tensor, first: int = 0) -> Streams:
        """A stream for each of a rank's images, of which ``first`` came before: rank r has every ranks-th image."""
        places = torch.arange(first, first + len(images), device=images.device)
        return Streams(key, places * self.trainer.world_size + self.global_rank)

    def _name(self, group: int) -> str:
        return self.label_names[group] if self.label_names else "all"

    def _errors(self, companded: Tensor, targets: Tensor) -> Tensor:
        """The reconstruction error of each image, (B,)."""
        if self.log_sigma is not None:
            return student_t_errors(companded, targets, self.log_sigma, self.degrees_of_freedom)
        return reconstruction_errors(companded, targets, cast(ReconstructionLoss, self.loss))

    def _evaluate_latent(self, images: Tensor, labels: Tensor, companded: Tensor, code: SimplexCode) -> None:
        """Updates the metrics by label, of the latent and of the geometry."""
        groups = labels if self.label_names else torch.zeros_like(labels)
        self.unexplained.update(companded, code.companded, groups)
        kl = code.kl.mean(1)  # (B, slots · D)
        dimensions = torch.arange(kl.shape[1], device=kl.device).expand_as(kl)
        self.kl_by_dimension.update(kl.flatten(), dimensions.flatten())
        errors = (self.net.to_images(companded, code.log_scale, code.grid) - images).abs().flatten(1)
        for name, quantile in (("median", 0.5), ("q90", 0.9)):
            ranked = errors.kthvalue(max(1, round(quantile * errors.shape[1])), dim=1).values
            cast(GroupedMean, self.raw[f"val_raw_{name}"]).update(ranked, groups)
        streams = self._streams(_VALIDATION, images, first=self._validated)
        self._validated += len(images)
        sampled = code._replace(z=reparameterise(code.mu, code.log_variance, streams))  # z as training sees it
        self.geometry.update_point_sets(sampled.point_sets)

    def _record(self, stage: Stage, companded: Tensor, code: SimplexCode) -> Tensor:
        """Updates the metrics of a batch and returns its reconstruction error."""
        loss = self._errors(companded, code.companded).mean()
        self.log_mean(f"{stage}/loss", self.means[f"{stage}/loss"], loss, len(companded))
        self.log_mean(f"{stage}/kl", self.means[f"{stage}/kl"], code.kl.sum(-1).mean(), len(companded))
        return loss

    def _latent_figures(self) -> dict[str, float]:
        """What the latent carries, over the validation set."""
        kl = torch.stack(list(self.kl_by_dimension.compute().values()))
        self.kl_by_dimension.reset()
        active = active_dimensions(kl, max(0.1, 2 * self.free_bits))
        collapsed = has_collapsed(active)
        if collapsed and not self._warned and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            rank_zero_info(f"The posterior has collapsed: {int(active.sum())} of {len(active)} dimensions are active.")
            self._warned = True
        return {
            "val/active_dimensions": float(active.sum()),
            "val/kl_per_dimension": float(kl.mean()),
            "val/collapsed": float(collapsed),
        }
