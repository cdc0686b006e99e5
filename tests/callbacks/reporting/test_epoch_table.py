from types import SimpleNamespace

import torch

from eigenscope.callbacks import EpochTable
from eigenscope.results import MonitoredMetric

IDLE = {"sanity_checking": False, "enable_validation": True, "progress_bar_callback": None}


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
    header, *rows = module.lines
    assert "train acc %" in header
    assert {len(row) for row in rows} == {len(header)}
    cells = [row.split() for row in rows]
    assert cells[0][:7] == ["1", "10.00", "20.00", "1.250", "-10.00", "20.00", "1"]
    assert cells[1][:7] == ["2", "100.00", "50.00", "1.250", "+50.00", "50.00", "2"]
    assert cells[2][:7] == ["3", "50.00", "-", "1.250", "-", "50.00", "2"]
    assert cells[3][5:7] == ["50.00", "2"]


def test_another_score():
    table, module = EpochTable(MonitoredMetric("val/mse", "min", percent=False)), Printer()
    trainer = SimpleNamespace(current_epoch=0, max_epochs=-1, **IDLE)
    table.on_train_start(trainer, module)
    for value in (0.001234, 0.0001, 0.01):
        run_epoch(table, trainer, module, {"val/mse": value})
    assert "val mse" in module.lines[0]
    assert module.lines[1].split() == ["1", "-", "0.001234", "-", "-", "0.001234", "1", "0.0", "-"]
    assert module.lines[3].split()[5:7] == ["0.0001", "2"]
