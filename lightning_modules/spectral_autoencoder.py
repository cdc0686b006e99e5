"""Lightning module of spectral autoencoders, whose latents are points on spheres."""

from collections.abc import Collection, Iterator
from typing import Any, cast, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.epoch_figures import log_epoch_metric
from eigenscope.lightning_modules.hyperparameters import save_given_hyperparameters
from eigenscope.lightning_modules.metrics import GroupedMean, MeanLoss
from eigenscope.lightning_modules.optimization import LRInterval, check_interval, optimizer_and_schedule
from eigenscope.lightning_modules.point_set_geometry import LatentGeometry
from eigenscope.nn.patch_autoencoder import PatchAutoencoder
from eigenscope.nn.reconstruction_errors import ReconstructionLoss, reconstruction_errors
from eigenscope.protocols import LossTransform, PointSets

_STAGES = ("train", "val", "test")


class SpectralAutoencoderModule(LightningModule):
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
        optimizer: makes the optimizer from the network's named trainable parameters.
        lr_scheduler: makes the schedule from the optimizer; None keeps the rate.
        lr_interval: what the schedule counts, ``epoch`` or ``step``.
        loss: ``mse``, ``huber`` or ``log_cosh``, see
            :func:`eigenscope.nn.reconstruction_errors.reconstruction_errors`.
        cross_attention_clip: largest norm of the gradient of the cross-attention's parameters; None does not clip.
        clip_to_loss: clip the norm of the whole gradient to max(reconstruction loss, 1), as the first round of the
            no-SVD ablation did; at other times Lightning's ``gradient_clip_val`` is what is wanted.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        net: PatchAutoencoder,  # type: ignore[type-arg]  # jsonargparse would build the base of a parametrised one
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LRInterval = "epoch",
        loss: ReconstructionLoss = "mse",
        cross_attention_clip: float | None = 0.5,
        clip_to_loss: bool = False,
    ) -> None:
        super().__init__()
        check_interval(lr_interval)
        if loss not in get_args(ReconstructionLoss):
            raise ValueError(f"loss must be one of {', '.join(get_args(ReconstructionLoss))}, got {loss!r}")
        if cross_attention_clip is not None and cross_attention_clip <= 0:
            raise ValueError(f"cross_attention_clip must be above 0, got {cross_attention_clip}")
        save_given_hyperparameters(self)
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.loss = loss
        self.cross_attention_clip = cross_attention_clip
        self.clip_to_loss = clip_to_loss
        self._latest_loss = torch.zeros(())
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

    def configure_optimizers(self) -> Any:
        """The injected optimizer over named trainable parameters, and its schedule."""
        return optimizer_and_schedule(self, self.net, self.optimizer, self.lr_scheduler, self.lr_interval)

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
        self._latest_loss = loss.detach()
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        for discipline in self.loss_transforms:
            loss = discipline(loss, code.point_sets)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates the validation metrics."""
        images, labels = batch
        reconstructions, code = self.net(images)
        self._record("val", images, reconstructions, labels)
        if self.label_names:
            norms = code.decoded_points.flatten(-2).norm(dim=-1).mean(-1)
            cast(GroupedMean, self.by_label["val_decoded_norm"]).update(norms, labels)
        shift = cast(MeanLoss, self.means["val/spectral_shift"])
        shift.update(code.shift.mean(), len(images))
        log_epoch_metric(self, "val/spectral_shift", shift)
        self.geometry.update_point_sets(code.point_sets)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates the test metrics."""
        images, labels = batch
        self._record("test", images, self(images), labels)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Reconstructions (B, 3, H, W)."""
        reconstructions: Tensor = self(batch[0])
        return reconstructions

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

    def _record(self, stage: str, images: Tensor, reconstructions: Tensor, labels: Tensor | None = None) -> Tensor:
        """Updates the metrics of a batch and returns its loss."""
        squares = reconstruction_errors(reconstructions, images, "mse")
        losses = squares if self.loss == "mse" else reconstruction_errors(reconstructions, images, self.loss)
        loss = losses.mean()
        for name, value in (("loss", loss), ("mse", squares.mean())):
            metric = cast(MeanLoss, self.means[f"{stage}/{name}"])
            metric.update(value, len(images))
            log_epoch_metric(self, f"{stage}/{name}", metric)
        if labels is not None and self.label_names:
            cast(GroupedMean, self.by_label[f"{stage}_mse"]).update(squares, labels)
            cast(GroupedMean, self.by_label[f"{stage}_power"]).update(images.flatten(1).square().mean(1), labels)
        return loss

    def _log_by_label(self, stage: str) -> None:
        for key, metric in self.by_label.items():
            if key.startswith(stage):
                means = cast(GroupedMean, metric).compute()
                cast(GroupedMean, metric).reset()
                figures = {f"{key}/{self.label_names[group]}": float(mean) for group, mean in means.items()}
                self.log_dict(figures, sync_dist=True)
