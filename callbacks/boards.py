"""Where figures go."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def boards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The trainer's TensorBoard loggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
