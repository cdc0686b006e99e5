from types import SimpleNamespace

import torch

from eigenscope.callbacks import EpochTable
from eigenscope.callbacks.reporting import epoch_recorder
from eigenscope.results import MonitoredMetric
from eigenscope.text import duration

IDLE = {"sanity_checking": False, "progress_bar_callback": None, "callbacks": [], "loggers": [], "max_steps": -1}
IDLE |= {"global_step": 0, "is_global_zero": True, "logger": SimpleNamespace(name="demo")}


class Printer:
    def __init__(self):
        self.lines = []

    def print(self, line):
        self.lines.append(line)


def run_epoch(table, trainer, module, figures, validate=True):
    table.on_train_epoch_start(trainer, module)
    if validate:
        table.on_validation_end(trainer, module)
    trainer.callback_metrics = {name: torch.tensor(value) for name, value in figures.items()}
    table.on_train_epoch_end(trainer, module)
    trainer.current_epoch += 1


def test_columns_line_up_and_best_is_the_earliest():
    table, module = EpochTable(), Printer()
    trainer = SimpleNamespace(current_epoch=0, max_epochs=1000, **IDLE)
    table.on_train_start(trainer, module)
    for train, val, validate in [(0.1, 0.2, True), (1.0, 0.5, True), (0.5, 0.5, False), (0.6, 0.5, True)]:
        run_epoch(table, trainer, module, {"train/acc": train, "val/acc": val, "train/loss": 1.25}, validate)
    title, header, *rows = module.lines
    assert title == "Run: demo"
    assert "train acc %" in header
    assert {len(row) for row in rows} == {len(header)}
    cells = [row.split() for row in rows]
    assert cells[0][:7] == ["1", "10.00", "20.00", "1.250", "-10.00", "20.00", "1"]
    assert cells[1][:7] == ["2", "100.00", "50.00", "1.250", "+50.00", "50.00", "2"]
    assert cells[2][:7] == ["3", "50.00", "-", "1.250", "-", "50.00", "2"]
    assert cells[3][5:7] == ["50.00", "2"]


def test_time_left_follows_the_last_epochs(monkeypatch):
    """Of epochs that became slower, whose median over all is none of now; of a run that was resumed, those since."""
    now = [0.0]
    monkeypatch.setattr(epoch_recorder.time, "perf_counter", lambda: now[0])
    table, module = EpochTable(), Printer()
    trainer = SimpleNamespace(current_epoch=0, max_epochs=20, **IDLE)

    def run(*seconds, steps=0):
        for each in seconds:
            table.on_train_epoch_start(trainer, module)
            now[0] += each
            trainer.global_step += steps
            table.on_train_epoch_end(trainer, module)
            trainer.current_epoch += 1
        return module.lines[-1].split()[-1]

    trainer.callback_metrics = {}
    table.on_train_start(trainer, module)
    assert run(*[16] * 6) == duration(14 * 16)
    assert run(534, 534) == duration(12 * 534)
    assert run(16, 534) == duration(10 * 534)
    table.on_train_start(trainer, module)
    assert run(2) == duration(9 * 2)
    trainer.max_steps = trainer.global_step + 25  # two epochs and a half after this one
    assert run(2, steps=10) == duration(1.5 * 2)


def test_another_score():
    table, module = EpochTable(MonitoredMetric("val/mse", "min", percent=False)), Printer()
    trainer = SimpleNamespace(current_epoch=0, max_epochs=-1, **IDLE)
    table.on_train_start(trainer, module)
    for value in (0.001234, 0.0001, 0.01):
        run_epoch(table, trainer, module, {"val/mse": value})
    assert "val mse" in module.lines[1]
    assert module.lines[2].split() == ["1", "-", "0.001234", "-", "-", "0.001234", "1", "0.0", "-"]
    assert module.lines[4].split()[5:7] == ["0.0001", "2"]
