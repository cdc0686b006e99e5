"""Lightning module of spectral autoencoders, whose latents are points on spheres."""

from collections.abc import Collection, Iterator
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.base import EvaluatedModule, Stage
from eigenscope.lightning_modules.metrics import GroupedMean, MeanLoss
from eigenscope.lightning_modules.point_set_geometry import LatentGeometry
from eigenscope.nn.autoencoders.patch_autoencoder import PatchAutoencoder
from eigenscope.nn.autoencoders.reconstruction_errors import ReconstructionLoss, reconstruction_errors
from eigenscope.protocols import LossTransform, PointSets

_STAGES = ("train", "val", "test")


class SpectralAutoencoderModule(EvaluatedModule):
    """Reconstruction training of an autoencoder of patches, such as PatchSVAE, on batches of images and labels.

    Logs once an epoch ``{train,val,test}/loss``, the reconstruction loss, and ``/mse``, both as means over samples of
    all ranks; in validation also ``val/spectral_shift``, the mean |S′ − S|, and for every point set, such as M,
    ``geometry_M/*``, see :class:`~eigenscope.lightning_modules.point_set_geometry.PointSetGeometry`. If the data module
    names its labels (``label_names``), ``{val,test}_mse/<name>`` is the error of a label's images, and
    ``{val,test}_power/<name>`` their mean square, which is the error of a reconstruction that is 0, and
    ``val_decoded_norm/<name>`` the mean norm |M̂| of a patch.

    A callback may append a :data:`~eigenscope.protocols.LossTransform` to ``loss_transforms``, which then sees the
    training loss and the point sets of each step.

    Args:
        net: the network.
        loss: ``mse``, ``huber`` or ``log_cosh``, see
            :func:`eigenscope.nn.autoencoders.reconstruction_errors.reconstruction_errors`.
        cross_attention_clip: largest norm of the gradient of the cross-attention's parameters; None does not clip.
        clip_to_loss: clip the norm of the whole gradient to max(reconstruction loss, 1), as the first round of the
            no-SVD ablation did; at other times Lightning's ``gradient_clip_val`` is what is wanted.
        *optimization, **more: ``optimizer``, ``lr_scheduler`` and ``lr_interval``, see BaseModule.

    Raises:
        ValueError: an argument is out of range.
    """

    net: PatchAutoencoder  # type: ignore[type-arg]

    def __init__(
        self,
        net: PatchAutoencoder,  # type: ignore[type-arg]  # jsonargparse would build the base of a parametrised one
        *optimization: Any,
        loss: ReconstructionLoss = "mse",
        cross_attention_clip: float | None = 0.5,
        clip_to_loss: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(net, *optimization, **more)
        if loss not in get_args(ReconstructionLoss):
            raise ValueError(f"loss must be one of {', '.join(get_args(ReconstructionLoss))}, got {loss!r}")
        if cross_attention_clip is not None and cross_attention_clip <= 0:
            raise ValueError(f"cross_attention_clip must be above 0, got {cross_attention_clip}")
        self.loss = loss
        self.cross_attention_clip = cross_attention_clip
        self.clip_to_loss = clip_to_loss
        self._latest_loss = torch.zeros((), dtype=torch.float32)
        self.point_set_shapes = net.point_set_shapes
        self.loss_transforms: list[LossTransform] = []
        self.geometry = LatentGeometry(net.point_set_shapes)
        figures = [f"{stage}/{name}" for stage in _STAGES for name in ("loss", "mse")]
        self.means = nn.ModuleDict({name: MeanLoss() for name in (*figures, "val/spectral_shift")})
        self.label_names: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        """Creates the metrics by label."""
        self.label_names = tuple(getattr(getattr(self.trainer, "datamodule", None), "label_names", ()))
        groups = len(self.label_names)
        figures = [f"{stage}_{name}" for stage in ("val", "test") for name in ("mse", "power")]
        self.by_label = nn.ModuleDict({name: GroupedMean(groups) for name in (*figures, "val_decoded_norm") if groups})

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions of images (B, 3, H, W), same shape."""
        reconstructions: Tensor = self.net(images)[0]
        return reconstructions

    def autoencode(self, images: Tensor) -> tuple[Tensor, PointSets]:
        """Reconstructions of images (B, 3, H, W), same shape, and the point sets."""
        reconstructions, code = self.net(images)
        return reconstructions, code.point_sets

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, with the loss terms of callbacks."""
        images, _ = batch
        reconstructions, code = self.net(images)
        if self.global_step == 0:
            self.geometry.note_untrained(code.point_sets)
        loss = self._record("train", images, reconstructions)
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        self._latest_loss = loss.detach()
        for transform in self.loss_transforms:
            loss = transform(loss, code.point_sets)
        return loss

    def evaluate(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> None:
        """Updates the metrics of a stage with a batch; those of the latent in validation only."""
        images, labels = batch
        reconstructions, code = self.net(images)
        self._record(stage, images, reconstructions, labels)
        if stage == "val":
            if self.label_names:
                norms = code.decoded_points.flatten(-2).norm(dim=-1).mean(-1)
                cast(GroupedMean, self.by_label["val_decoded_norm"]).update(norms, labels)
            self.log_mean("val/spectral_shift", self.means["val/spectral_shift"], code.shift.mean(), len(images))
            self.geometry.update_point_sets(code.point_sets)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``reconstructions`` (B, 3, H, W), their mean squared error ``mse`` (B,) and ``labels`` (B,)."""
        images, labels = batch
        reconstructions = self(images)
        errors = reconstruction_errors(reconstructions, images, "mse")
        return {"reconstructions": reconstructions, "mse": errors, "labels": labels}

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics by label and the geometry."""
        self._log_by_label("val")
        self.log_dict(self.geometry.compute(), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Logs the metrics by label."""
        self._log_by_label("test")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the cross-attention's gradient, as the published recipe does, and the whole one if asked to."""
        if self.clip_to_loss:
            loss: Any = self._latest_loss
            if self.trainer.world_size > 1:  # or each rank would clip to its own, and their weights go apart
                loss = self.trainer.strategy.reduce(loss.clone(), reduce_op="mean")
            nn.utils.clip_grad_norm_(self.net.parameters(), max(float(loss), 1.0))
        if self.cross_attention_clip is not None and len(self.net.cross_attention):
            nn.utils.clip_grad_norm_(self.net.cross_attention.parameters(), self.cross_attention_clip)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation, the error of each label beside that of a reconstruction that is 0, geometry."""
        wanted = [
            *([] if self.loss == "mse" else [train_and_val(self.loss, "loss")]),  # which would be the next one
            train_and_val("mean squared error", "mse"),
            Chart("Training and validation", "mean |S′ − S|", ("val/spectral_shift",)),
            *(
                Chart("By label", f"{name}: mean squared error, mean square", (f"val_mse/{name}", f"val_power/{name}"))
                for name in self.label_names
            ),
        ]
        return present(wanted, logged) + self.geometry.charts(logged)

    def trace(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a step in the order in which they are computed, (B, ...) each."""
        images, _ = batch
        yield "target images", images
        reconstructions = images
        for name, reconstructions in self.net.trace(images):
            yield name, reconstructions
        yield "reconstruction loss", reconstruction_errors(reconstructions, images, self.loss)

    def describe(self, batch: tuple[Tensor, Tensor], sample: int) -> str:
        """The noise type, or whatever the label of a sample is called."""
        label = int(batch[1][sample])
        return self.label_names[label] if self.label_names else f"label {label}"

    def _record(self, stage: Stage, images: Tensor, reconstructions: Tensor, labels: Tensor | None = None) -> Tensor:
        """Updates the metrics of a batch and returns its loss."""
        squares = reconstruction_errors(reconstructions, images, "mse")
        losses = squares if self.loss == "mse" else reconstruction_errors(reconstructions, images, self.loss)
        loss = losses.mean()
        self.log_mean(f"{stage}/loss", self.means[f"{stage}/loss"], loss, len(images))
        self.log_mean(f"{stage}/mse", self.means[f"{stage}/mse"], squares.mean(), len(images))
        if labels is not None and self.label_names:
            cast(GroupedMean, self.by_label[f"{stage}_mse"]).update(squares, labels)
            cast(GroupedMean, self.by_label[f"{stage}_power"]).update(
                images.flatten(1).float().square().mean(1), labels
            )
        return loss

    def _log_by_label(self, stage: str) -> None:
        for key, metric in self.by_label.items():
            if key.startswith(stage):
                means = cast(GroupedMean, metric).compute()
                cast(GroupedMean, metric).reset()
                figures = {f"{key}/{self.label_names[group]}": float(mean) for group, mean in means.items()}
                self.log_dict(figures, sync_dist=True)
