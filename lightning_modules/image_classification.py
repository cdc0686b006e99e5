"""Lightning module of image classification."""

from collections.abc import Collection
from typing import Any, cast

import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from eigenscope.adapters.torch_names import is_compiled
from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.base import EvaluatedModule, Stage
from eigenscope.lightning_modules.metrics import MeanLoss

_STAGES = ("train", "val", "test")


class ImageClassificationModule(EvaluatedModule):
    """Cross-entropy training of a network that maps images (B, C, H, W) to logits (B, num_classes).

    Logs ``{train,val,test}/{loss,acc,acc5}`` once an epoch, over all ranks (loss in nats, accuracies as fractions;
    training metrics are taken in training mode while the weights move, as usual), ``train/loss_step`` every few
    steps, and with each validation ``val/gap``, training accuracy of the epoch so far minus validation accuracy. With
    fewer than five classes ``acc5`` is always 1.

    Args:
        net: the network; it must have the attribute ``num_classes``.
        label_smoothing: of the training loss, in [0, 1); validation and test losses have none.
        compile_net: compile the network in place before the first step; keys of checkpoints stay the same.
        *optimization, **more: ``optimizer``, ``lr_scheduler`` and ``lr_interval``, see BaseModule.

    Raises:
        ValueError: ``net`` has no ``num_classes``, or an argument is out of range.
    """

    def __init__(
        self, net: nn.Module, *optimization: Any, label_smoothing: float = 0.0, compile_net: bool = False, **more: Any
    ) -> None:
        super().__init__(net, *optimization, **more)
        num_classes = getattr(net, "num_classes", None)
        if not isinstance(num_classes, int):
            raise ValueError(
                f"net must have an integer attribute num_classes, {type(net).__name__} has {num_classes!r}"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.compile_net = compile_net
        # the keys end in "_" because a ModuleDict takes no key that a Module has as an attribute, as in "train"
        self.losses = nn.ModuleDict({f"{stage}_": MeanLoss() for stage in _STAGES})
        self.accuracies = nn.ModuleDict({f"{stage}_": _accuracies(num_classes) for stage in _STAGES})

    def configure_model(self) -> None:
        """Compiles the network if asked to."""
        if self.compile_net and not is_compiled(self.net):
            self.net.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.net(images)
        return logits

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``logits`` and ``probabilities`` (B, num_classes) float32, and the true ``labels`` (B,)."""
        images, labels = batch
        logits = self(images).float()
        return {"logits": logits, "probabilities": logits.softmax(-1), "labels": labels}

    def on_validation_epoch_end(self) -> None:
        """Logs the gap between training and validation accuracy, if this validation belongs to a training."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            collections = (cast(MetricCollection, self.accuracies[f"{stage}_"]) for stage in ("train", "val"))
            train, val = (cast(MulticlassAccuracy, each["acc"]) for each in collections)
            self.log("val/gap", train.compute() - val.compute(), sync_dist=True)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation."""
        figures = {"loss (nats)": "loss", "accuracy": "acc", "top-5 accuracy": "acc5"}
        gap = Chart("Training and validation", "accuracy gap, training minus validation", ("val/gap",))
        return present([*(train_and_val(*figure) for figure in figures.items()), gap], logged)

    def evaluate(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Updates the metrics of a stage with a batch, and returns its loss, smoothed in training."""
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing if stage == "train" else 0.0)
        self.log_mean(f"{stage}/loss", self.losses[f"{stage}_"], loss, len(labels))
        for name, metric in cast(MetricCollection, self.accuracies[f"{stage}_"]).items():
            metric.update(logits.detach(), labels)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True)
        return loss


def _accuracies(num_classes: int) -> MetricCollection:
    def top(k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)

    # no compute groups: torchmetrics would take the two, equal on a first batch, for one
    return MetricCollection({"acc": top(1), "acc5": top(5)}, compute_groups=False)
