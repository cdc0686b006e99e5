"""Training a classifier of images."""

from typing import Any, Literal, cast

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


class ImageClassificationModule(LightningModule):
    """Cross-entropy training of a network that maps images (B, C, H, W) to logits (B, num_classes).

    Logs ``{train,val,test}/{loss,acc,acc5}`` once an epoch, over all ranks (loss in nats, accuracies as fractions;
    training figures are taken in training mode while the weights move, as usual), ``train/loss_step`` every few
    steps, and ``gap/acc``, training minus validation accuracy. With fewer than five classes ``acc5`` is always 1.

    Args:
        net: the network; it must have the attribute ``num_classes``.
        optimizer: makes the optimizer from the network's named trainable parameters.
        lr_scheduler: makes the schedule from the optimizer; None keeps the rate.
        lr_interval: what the schedule counts, ``epoch`` or ``step``.
        label_smoothing: of the training loss, in [0, 1); validation and test losses have none.
        compile_net: compile the network in place before the first step; keys of checkpoints stay the same.

    Raises:
        ValueError: ``net`` has no ``num_classes``, or an argument is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        compile_net: bool = False,
    ) -> None:
        super().__init__()
        num_classes = getattr(net, "num_classes", None)
        if not isinstance(num_classes, int):
            raise ValueError(
                f"net must have an integer attribute num_classes, {type(net).__name__} has {num_classes!r}"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if lr_interval not in ("epoch", "step"):
            raise ValueError(f"lr_interval must be 'epoch' or 'step', got {lr_interval!r}")
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()  # from the command line these are plain values; from Python, live objects
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.label_smoothing = label_smoothing
        self.compile_net = compile_net
        # the keys end in "_" because a ModuleDict takes no key that a Module has as an attribute, as in "train"
        self.metrics = nn.ModuleDict({f"{stage}_": _metrics(num_classes) for stage in ("train", "val", "test")})

    def configure_model(self) -> None:
        """Compiles the network if asked to."""
        if self.compile_net and self.net._compiled_call_impl is None:
            self.net.compile()

    def configure_optimizers(self) -> Any:
        """The injected optimizer over named trainable parameters, and its schedule."""
        named = [(name, parameter) for name, parameter in self.net.named_parameters() if parameter.requires_grad]
        optimizer = self.optimizer(named)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        schedule: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The smoothed loss of a batch."""
        loss = self._step("train", batch, self.label_smoothing)
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates the validation figures."""
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates the test figures."""
        self._step("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (B, num_classes) float32."""
        logits: Tensor = self(batch[0])
        return logits.float().softmax(-1)

    def on_train_epoch_end(self) -> None:
        """Logs the gap between training and validation accuracy, where the epoch was validated."""
        logged = self.trainer.callback_metrics
        if "val/acc" in logged:
            self.log("gap/acc", logged["train/acc"] - logged["val/acc"], sync_dist=True)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        metrics = cast(MetricCollection, self.metrics[f"{stage}_"])
        for name, metric in metrics.items():
            if name == "loss":
                metric.update(loss.detach(), weight=len(labels))
            else:
                metric.update(logits.detach(), labels)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "acc")
        return loss


def _metrics(num_classes: int) -> MetricCollection:
    def top(k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)

    # no compute groups: torchmetrics would take the two accuracies, equal on a first batch, for one
    return MetricCollection({"loss": MeanMetric(), "acc": top(1), "acc5": top(5)}, compute_groups=False)
