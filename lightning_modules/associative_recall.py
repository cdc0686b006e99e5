"""Lightning module of associative recall: trains a sequence model to answer queries."""

from collections.abc import Collection
from typing import Any, cast

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.epoch_figures import log_epoch_metric
from eigenscope.lightning_modules.hyperparameters import save_given_hyperparameters
from eigenscope.lightning_modules.metrics import MeanLoss
from eigenscope.lightning_modules.optimization import LRInterval, check_interval, optimizer_and_schedule

_STAGES = ("train", "val", "test")


class AssociativeRecallModule(LightningModule):
    """Associative recall: cross-entropy of answers in tokens (B, T) int64; labels (B, T) are −100 where none is due.

    Only tokens with a label count. Logs ``{train,val,test}/{loss,recall}`` once an epoch, over all ranks (loss in nats
    an answer, recall as the fraction of answers that are right; training metrics are taken while the weights move),
    and ``train/loss_step`` every few steps.

    Args:
        net: maps tokens (B, T) to logits (B, T, vocabulary); it must have the attribute ``vocabulary``.
        optimizer: makes the optimizer from the network's named trainable parameters.
        lr_scheduler: makes the schedule from the optimizer; None keeps the rate.
        lr_interval: what the schedule counts, ``epoch`` or ``step``.

    Raises:
        ValueError: ``net`` has no ``vocabulary``; in setup, it is smaller than that of the data.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LRInterval = "epoch",
    ) -> None:
        super().__init__()
        vocabulary = getattr(net, "vocabulary", None)
        if not isinstance(vocabulary, int):
            raise ValueError(f"net must have an integer attribute vocabulary, {type(net).__name__} has {vocabulary!r}")
        check_interval(lr_interval)
        save_given_hyperparameters(self)
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.vocabulary = vocabulary
        # the keys end in "_" because a ModuleDict takes no key that a Module has as an attribute, as in "train"
        self.losses = nn.ModuleDict({f"{stage}_": MeanLoss() for stage in _STAGES})
        self.recalls = nn.ModuleDict(
            {f"{stage}_": MulticlassAccuracy(vocabulary, average="micro", validate_args=False) for stage in _STAGES}
        )

    def setup(self, stage: str) -> None:
        """Checks that the network knows the tokens of the data."""
        needed = getattr(getattr(self.trainer, "datamodule", None), "vocabulary", None)
        if needed is not None and needed > self.vocabulary:
            raise ValueError(f"net must have a vocabulary of at least {needed}, the data's, got {self.vocabulary}")

    def configure_optimizers(self) -> Any:
        """The injected optimizer over named trainable parameters, and its schedule."""
        return optimizer_and_schedule(self, self.net, self.optimizer, self.lr_scheduler, self.lr_interval)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary)."""
        logits: Tensor = self.net(tokens)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self._step("train", batch)
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates the validation metrics."""
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Updates the test metrics."""
        self._step("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The likeliest token after each, (B, T) int64."""
        logits: Tensor = self(batch[0])
        return logits.argmax(-1)

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation."""
        return present([train_and_val("loss (nats)", "loss"), train_and_val("recall", "recall")], logged)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = batch
        asked = labels >= 0
        logits, answers = self(tokens)[asked].float(), labels[asked]
        loss = F.cross_entropy(logits, answers)
        mean_loss = cast(MeanLoss, self.losses[f"{stage}_"])
        recall = cast(MulticlassAccuracy, self.recalls[f"{stage}_"])
        mean_loss.update(loss, len(answers))
        recall.update(logits.detach(), answers)
        log_epoch_metric(self, f"{stage}/loss", mean_loss)
        log_epoch_metric(self, f"{stage}/recall", recall)
        return loss
