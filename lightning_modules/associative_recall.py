"""Lightning module of associative recall: trains a sequence model to answer queries."""

from collections.abc import Collection
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.base import EvaluatedModule, Stage
from eigenscope.lightning_modules.metrics import MeanLoss

_STAGES = ("train", "val", "test")


class AssociativeRecallModule(EvaluatedModule):
    """Associative recall: cross-entropy of answers in tokens (B, T) int64; labels (B, T) are −100 where none is due.

    Only tokens with a label count. Logs ``{train,val,test}/{loss,recall}`` once an epoch, over all ranks (loss in nats
    an answer, recall as the fraction of answers that are right; training metrics are taken while the weights move),
    and ``train/loss_step`` every few steps.

    Args:
        net: maps tokens (B, T) to logits (B, T, vocabulary); it must have the attribute ``vocabulary``.
        *optimization, **more: ``optimizer``, ``lr_scheduler`` and ``lr_interval``, see BaseModule.

    Raises:
        ValueError: ``net`` has no ``vocabulary``; in setup, it is smaller than that of the data.
    """

    def __init__(self, net: nn.Module, *optimization: Any, **more: Any) -> None:
        super().__init__(net, *optimization, **more)
        vocabulary = getattr(net, "vocabulary", None)
        if not isinstance(vocabulary, int):
            raise ValueError(f"net must have an integer attribute vocabulary, {type(net).__name__} has {vocabulary!r}")
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

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary)."""
        logits: Tensor = self.net(tokens)
        return logits

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The likeliest token after each, ``tokens``, and the right ones, ``labels``, (B, T) int64 each."""
        tokens, labels = batch
        return {"tokens": self(tokens).argmax(-1), "labels": labels}

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation."""
        return present([train_and_val("loss (nats)", "loss"), train_and_val("recall", "recall")], logged)

    def evaluate(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Updates the metrics of a stage with a batch, and returns its loss."""
        tokens, labels = batch
        asked = labels >= 0
        logits, answers = self(tokens)[asked].float(), labels[asked]
        loss = F.cross_entropy(logits, answers)
        recall = cast(MulticlassAccuracy, self.recalls[f"{stage}_"])
        recall.update(logits.detach(), answers)
        self.log_mean(f"{stage}/loss", self.losses[f"{stage}_"], loss, len(answers))
        self.log(f"{stage}/recall", recall, on_step=False, on_epoch=True)
        return loss
