"""A file from scratch, with a stranger's module and data alone, gets a table, a row and a resume checkpoint."""

import sys
from pathlib import Path

import pytest
import torch

from eigenscope import cli
from eigenscope.results import MonitoredMetric, RunMetadata, read_scoreboard
from eigenscope.results.monitor_choice import choose_monitor

OWN = '''
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError


class Line(LightningModule):
    """A straight line, with metrics of its own."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.errors = torch.nn.ModuleDict({"val_": MeanSquaredError()})

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.errors["val_"].update(self(batch[0]), batch[1])
        self.log("val_loss", self.errors["val_"], on_epoch=True)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Points(LightningDataModule):
    """Points on a line."""

    def _loader(self):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)

    train_dataloader = val_dataloader = predict_dataloader = _loader


class Unvalidated(Points):
    val_dataloader = LightningDataModule.val_dataloader
'''
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
RUN = Path("runs/line/version_0")


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_line", raising=False)
    Path("own_line.py").write_text(OWN)
    Path("line.yaml").write_text("model: own_line.Line\ndata: own_line.Points\ntrainer: {max_epochs: 2}\n")


def main(command, *arguments):
    return cli.main([command, "--config", "line.yaml", *QUIET, *arguments])


def test_a_file_from_scratch_is_recorded_and_resumed(capsys):
    whole = main("fit", "--trainer.max_epochs=3", "--trainer.logger=false")
    printed = capsys.readouterr().out
    RUN.rename("whole")
    main("fit", "--trainer.logger=false")
    resumed = main("fit", "--trainer.max_epochs=3", "--trainer.logger=false", "--ckpt_path", str(RUN))
    assert torch.equal(resumed.model.layer.weight, whole.model.layer.weight)
    result = RunMetadata.load(RUN).result
    assert result.score == MonitoredMetric("val_loss", "min", percent=False)
    assert [row.metrics for row in result.epochs] == [
        row.metrics for row in RunMetadata.load(Path("whole")).result.epochs
    ]
    (row,) = read_scoreboard(Path("runs/scoreboard.csv"))
    assert (row["name"], row["score"], row["mode"], float(row["best"])) == (
        "line",
        "val_loss",
        "min",
        pytest.approx(result.best[0], rel=1e-5),
    )
    lines = printed.splitlines()
    choice = "val/acc is not logged: epochs are judged by val_loss, best when smallest; "
    assert [line.startswith(choice) for line in lines].count(True) == 1
    header = next(number for number, line in enumerate(lines) if line.split()[:1] == ["epoch"])
    assert lines[header].split()[:5] == ["epoch", "train", "loss", "val", "loss"]
    first = result.epochs[0].metrics
    assert lines[header + 1].split()[:3] == ["1", f"{first['train_loss']:.4g}", f"{first['val_loss']:.4g}"]
    start = next(number for number, line in enumerate(lines) if line.split() == ["part", "class", "parameters"])
    assert lines[start + 2].split() == ["layer", "Linear", "3"]
    assert lines[start + 3] == "3 parameters, 0 of them frozen"
    assert "FLOPs" not in printed


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_defaults_can_be_left_out_and_replaced(capsys):
    run = main(
        "fit", "--without=[Scoreboard, EpochTable]", "--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"
    )
    names = [type(each).__name__ for each in run.trainer.callbacks]
    assert not {"Scoreboard", "EpochTable", "ResumeCheckpoint"} & set(names)
    assert not Path("runs").exists()
    folder = Path("lightning_logs/version_0")  # of Lightning's own logger
    assert RunMetadata.load(folder).outcome == "finished"
    capsys.readouterr()
    summary = "{class_path: ModelSummary, init_args: {max_depth: 2}}"
    board = "{class_path: Scoreboard, init_args: {path: mine.csv, show: false}}"
    run = main(
        "fit", f"--trainer.callbacks=[{summary}, {board}]", "--trainer.max_epochs=1", "--data=own_line.Unvalidated"
    )
    names = [type(each).__name__ for each in run.trainer.callbacks]
    assert (names.count("Scoreboard"), names.count("ModelSummary"), names.count("ParameterSummary")) == (1, 1, 0)
    (row,) = read_scoreboard(Path("mine.csv"))
    assert (row["score"], row["log_dir"]) == ("train_loss", str(Path.cwd() / "lightning_logs/version_1"))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["val/acc5", "val/acc", "val/loss"], ("val/acc", "max")),
        (["valid_accuracy", "train_loss"], ("valid_accuracy", "max")),
        (["val_loss", "val_f1"], ("val_loss", "min")),
        (["validation.f1_macro"], ("validation.f1_macro", "max")),
        (["val/mse", "train/acc"], ("val/mse", "min")),
        (["train/loss", "loss", "train/loss_step", "value_loss"], ("loss", "min")),
        (["lr", "train/acc"], None),
        ([], None),
    ],
)
def test_the_metric_that_says_most_is_chosen(names, chosen):
    found = choose_monitor(names)
    assert (found and (found.name, found.mode)) == chosen
    assert found is None or not found.percent
