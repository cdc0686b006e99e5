"""Training a classifier of images."""

from collections.abc import Collection
from typing import Any, cast

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from eigenscope.adapters.torch_names import is_compiled
from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.epoch_figures import log_epoch_metric
from eigenscope.lightning_modules.hyperparameters import save_given_hyperparameters
from eigenscope.lightning_modules.metrics import MeanLoss
from eigenscope.lightning_modules.optimization import LRInterval, check_interval, optimizer_and_schedule

_STAGES = ("train", "val", "test")


class ImageClassificationModule(LightningModule):
    """Cross-entropy training of a network that maps images (B, C, H, W) to logits (B, num_classes).

    Logs ``{train,val,test}/{loss,acc,acc5}`` once an epoch, over all ranks (loss in nats, accuracies as fractions;
    training figures are taken in training mode while the weights move, as usual), ``train/loss_step`` every few
    steps, and with each validation ``val/gap``, training accuracy of the epoch so far minus validation accuracy. With
    fewer than five classes ``acc5`` is always 1.

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
        lr_interval: LRInterval = "epoch",
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
        check_interval(lr_interval)
        save_given_hyperparameters(self)
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.label_smoothing = label_smoothing
        self.compile_net = compile_net
        # the keys end in "_" because a ModuleDict takes no key that a Module has as an attribute, as in "train"
        self.losses = nn.ModuleDict({f"{stage}_": MeanLoss() for stage in _STAGES})
        self.accuracies = nn.ModuleDict({f"{stage}_": _accuracies(num_classes) for stage in _STAGES})

    def configure_model(self) -> None:
        """Compiles the network if asked to."""
        if self.compile_net and not is_compiled(self.net):
            self.net.compile()

    def configure_optimizers(self) -> Any:
        """The injected optimizer over named trainable parameters, and its schedule."""
        return optimizer_and_schedule(self, self.net, self.optimizer, self.lr_scheduler, self.lr_interval)

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

    def on_validation_epoch_end(self) -> None:
        """Logs the gap between training and validation accuracy, if this validation belongs to a training."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            train, val = (cast(MulticlassAccuracy, self._accuracies(stage)["acc"]) for stage in ("train", "val"))
            self.log("val/gap", train.compute() - val.compute(), sync_dist=True)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation."""
        figures = {"loss (nats)": "loss", "accuracy": "acc", "top-5 accuracy": "acc5"}
        gap = Chart("Training and validation", "accuracy gap, training minus validation", ("val/gap",))
        return present([*(train_and_val(*figure) for figure in figures.items()), gap], logged)

    def _accuracies(self, stage: str) -> MetricCollection:
        return cast(MetricCollection, self.accuracies[f"{stage}_"])

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        mean_loss = cast(MeanLoss, self.losses[f"{stage}_"])
        mean_loss.update(loss, len(labels))
        log_epoch_metric(self, f"{stage}/loss", mean_loss)
        for name, metric in self._accuracies(stage).items():
            metric.update(logits.detach(), labels)
            log_epoch_metric(self, f"{stage}/{name}", metric)
        return loss


def _accuracies(num_classes: int) -> MetricCollection:
    def top(k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)

    # no compute groups: torchmetrics would take the two, equal on a first batch, for one
    return MetricCollection({"acc": top(1), "acc5": top(5)}, compute_groups=False)
