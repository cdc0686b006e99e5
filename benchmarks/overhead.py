"""Benchmark of logging and callbacks: their share of an epoch of the shipped demo.

    python benchmarks/overhead.py                # configs/demo.yaml, 3 epochs
    python benchmarks/overhead.py --config configs/svae_noise_small.yaml --epochs 2

A run of the command line in which every hook of every callback, and everything that logs, is timed: the difference of
two runs would drown in noise. A row is without what is called from within it that has a row of its own, so a callback
that logs is not charged for the logger. Shares are of the median epoch, with its validation and its checkpoints; what
happens once, before the first epoch and after the last, is given in milliseconds. Logging and reporting are to take at
most 1 % of an epoch.
"""

import argparse
import io
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from timing import machine

from eigenscope.cli.lightning_cli import EigenscopeCLI
from eigenscope.text import text_table

LOGGING = {"loggers": ("log_metrics", "log_hyperparams", "save", "finalize"), "self.log": ("log",)}
COLLECTING = (  # of Lightning's logger connector, which takes what was logged to the loggers
    "update_train_step_metrics",
    "update_train_epoch_metrics",
    "update_eval_step_metrics",
    "update_eval_epoch_metrics",
    "log_eval_end_metrics",
)
GUARDING = ("FiniteGuard", "ResumeCheckpoint", "ExactResume")  # of the project's callbacks, those that report nothing
HOOKS = tuple(name for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown", "state_dict"))


class Ledger(Callback):
    """Seconds by row in each epoch; those before the first epoch and after the last are one more part."""

    def __init__(self) -> None:
        self.once: dict[str, float] = defaultdict(float)
        self.epochs: list[dict[str, float]] = []
        self.borders: list[float] = []
        self._part = self.once
        self._within: list[float] = []  # of each call under way, the seconds of calls inside it

    def charge(self, owner: object, methods: Iterable[str], row: str) -> None:
        """Times these methods of an object from now on."""
        for name in methods:
            vars(owner)[name] = self._timed(getattr(owner, name), row)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.borders.append(time.perf_counter())
        self._part = defaultdict(float)
        self.epochs.append(self._part)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.borders.append(time.perf_counter())
        self._part = self.once

    def _timed(self, method: Callable[..., Any], row: str) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **options: Any) -> Any:
            self._within.append(0.0)
            started = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                elapsed = time.perf_counter() - started
                self._part[row] += elapsed - self._within.pop()
                if self._within:
                    self._within[-1] += elapsed

        return timed


class Timed(EigenscopeCLI):
    """The command line, with a ledger."""

    def before_fit(self) -> None:
        super().before_fit()
        self.ledger, self.reporting = Ledger(), {*LOGGING, "collecting"}
        for logger in self.trainer.loggers:
            self.ledger.charge(logger, LOGGING["loggers"], "loggers")
        self.ledger.charge(self.model, LOGGING["self.log"], "self.log")
        self.ledger.charge(self.trainer._logger_connector, COLLECTING, "collecting")
        for callback in self.trainer.callbacks:
            kind = type(callback)
            mine = [name for name in HOOKS if getattr(kind, name) is not getattr(Callback, name)]
            self.ledger.charge(callback, mine, kind.__name__)
            if kind.__module__.startswith("eigenscope.callbacks.") and kind.__name__ not in GUARDING:
                self.reporting.add(kind.__name__)
        self.trainer.callbacks.insert(0, self.ledger)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    arguments = ["fit", "--config", str(Path(options.config).resolve()), "--trainer.max_epochs", str(options.epochs)]
    with ExitStack() as stack:
        stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))  # for runs/ and the scoreboard
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        run = Timed(arguments)
    ledger = run.ledger
    seconds = median(after - before for before, after in zip(ledger.borders, ledger.borders[1:], strict=False))
    each = {row: median(epoch[row] for epoch in ledger.epochs) for epoch in ledger.epochs for row in epoch}
    everything = sorted(each.keys() | ledger.once.keys(), key=lambda row: -each.get(row, 0))

    def cells(name: str, rows: Iterable[str]) -> list[str]:
        epoch, once = sum(each.get(row, 0) for row in rows), sum(ledger.once[row] for row in rows)
        return [name, f"{1e3 * epoch:.1f}", f"{epoch / seconds:.2%}", f"{1e3 * once:.0f}"]

    table = []
    for title, wanted in {"logging and reporting": True, "guarding, saving, showing": False}.items():
        rows = [row for row in everything if (row in run.reporting) == wanted]
        table += [cells(row, [row]) for row in rows] + [cells(f"= {title}", rows)]
    print(f"{machine()}; {options.config}, median of {options.epochs} epochs of {seconds:.2f} s")
    print(text_table(["part", "ms an epoch", "of an epoch", "ms once"], table))


if __name__ == "__main__":
    main()
