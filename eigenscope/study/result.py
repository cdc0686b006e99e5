"""What a finished training run leaves behind."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from eigenscope.files import replace_atomically


@dataclass(frozen=True)
class EpochResult:
    """One epoch: accuracies are fractions, ``val_acc`` is None where the epoch was not validated.

    ``epoch`` counts from 1; ``loss`` is the mean training loss in nats; ``seconds`` include validation.
    """

    epoch: int
    train_acc: float
    val_acc: float | None
    loss: float
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """One run.

    Args:
        name: of the experiment.
        seed: of the run; None if it was not seeded.
        parameters: all of them, frozen ones included.
        finished: ISO 8601 time with zone.
        log_dir: folder of the run's logs; empty if it had none.
        epochs: at least one, at least one of them validated.

    Raises:
        ValueError: no epoch was validated.
    """

    name: str
    seed: int | None
    parameters: int
    finished: str
    log_dir: str
    epochs: tuple[EpochResult, ...]

    def __post_init__(self) -> None:
        """Checks that there is something to report."""
        if not self.validated:
            raise ValueError(f"run {self.name!r} has no validated epoch")

    @property
    def validated(self) -> list[tuple[float, int]]:
        """(validation accuracy, epoch) of the epochs that were validated, in order."""
        return [(row.val_acc, row.epoch) for row in self.epochs if row.val_acc is not None]

    @property
    def best(self) -> tuple[float, int]:
        """Highest validation accuracy and its epoch, the earliest on a tie."""
        return max(self.validated, key=lambda pair: pair[0])

    @property
    def last(self) -> float:
        """Validation accuracy of the last validated epoch."""
        return self.validated[-1][0]

    @property
    def seconds_per_epoch(self) -> float:
        """Median over epochs."""
        return statistics.median(row.seconds for row in self.epochs)

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        with replace_atomically(path) as aside:
            aside.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what :meth:`save` wrote."""
        fields = json.loads(path.read_text())
        return cls(**fields | {"epochs": tuple(EpochResult(**row) for row in fields["epochs"])})
