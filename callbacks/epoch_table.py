"""One readable line an epoch."""

import statistics

from lightning.pytorch import LightningModule, Trainer

from callbacks.epoch_recorder import EpochRecorder
from eigenscope.study import duration

_HEADER = " epoch  train %  val %    loss     gap  best %  at epoch  seconds   left"


class EpochTable(EpochRecorder):
    """Prints training and validation accuracy in per cent, training loss, their gap in points, the best validation
    accuracy so far with its epoch, the seconds the epoch took with validation, and the time the run has left.

    Lines go through the progress bar, where there is one, so that neither overwrites the other.
    """  # noqa: D205

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the header."""
        pl_module.print(_HEADER)

    def epoch_recorded(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch's line."""
        row = self.epochs[-1]
        validated = [(past.val_acc, past.epoch) for past in self.epochs if past.val_acc is not None]
        val, gap, best, at = f"{'-':>5}", f"{'-':>6}", f"{'-':>5}", "-"
        if row.val_acc is not None:
            val, gap = f"{100 * row.val_acc:5.2f}", f"{100 * (row.train_acc - row.val_acc):+6.2f}"
        if validated:
            accuracy, epoch = max(validated, key=lambda pair: pair[0])
            best, at = f"{100 * accuracy:5.2f}", str(epoch)
        pl_module.print(
            f"{row.epoch:6d}  {100 * row.train_acc:7.2f}  {val}  {row.loss:6.3f}  {gap}  {best:>6}  {at:>8}"
            f"  {row.seconds:7.1f}  {self._left(trainer):>5}"
        )

    def _left(self, trainer: Trainer) -> str:
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            return "-"
        left = max(0, trainer.max_epochs - self.epochs[-1].epoch)
        return duration(left * statistics.median(row.seconds for row in self.epochs))
