"""A run leaves its record, continues in its folder and is evaluated alike, whatever logs it."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eigenscope import cli
from eigenscope.cli.errors.runtime_errors import explain
from eigenscope.results import RunMetadata, read_scoreboard

DEMO = str(Path(__file__).parents[1] / "configs" / "demo.yaml")
NET = "--model.init_args.net.init_args"
SMALL = [
    *(f"{NET}.{option}" for option in ("width=8", "depth=1", "num_heads=1")),
    *(f"--data.init_args.{option}" for option in ("train_size=80", "test_size=41", "batch_size=20", "num_workers=0")),
    "--data.init_args.image_size=16",
    "--model.init_args.lr_scheduler=null",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
]
OWN = '''
from lightning.pytorch.loggers import Logger


class Lines(Logger):
    """Keeps lines in memory; its folder is on a server that does not answer."""

    name, version = "lines", "always"

    def __init__(self):
        super().__init__()
        self.lines = []

    @property
    def log_dir(self):
        raise ConnectionError("no answer")

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))


class Remote(Lines):
    log_dir = "s3://bucket/runs"


class Fails(Lines):
    def log_metrics(self, metrics, step=None):
        raise PermissionError("the key is not valid")
'''
TENSORBOARD = "{class_path: TensorBoardLogger, init_args: {save_dir: runs, name: demo}}"
CSV = "{class_path: CSVLogger, init_args: {save_dir: runs, name: demo}}"
WANDB = "{class_path: WandbLogger, init_args: {offline: true, save_dir: wandb}}"
MLFLOW = "{class_path: MLFlowLogger, init_args: {save_dir: mlruns}}"
RUN = Path("runs/demo/version_0")


def main(command, *arguments, epochs=2):
    return cli.main([command, "--config", DEMO, *SMALL, f"--trainer.max_epochs={epochs}", *arguments])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_logger", raising=False)
    Path("own_logger.py").write_text(OWN)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted: weights, metrics of each epoch, and logged curves."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.chdir(folder)
        run = main("fit")
        return run.model.state_dict(), metrics(RUN), curves(RUN)


def metrics(folder):
    return [row.metrics for row in RunMetadata.load(folder).result.epochs]


def curves(folder):
    events = EventAccumulator(str(folder)).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(("train/", "val/"))]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def table(folder):
    found = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name.startswith(("train/", "val/")):
                    found.setdefault(name, []).append((int(row["step"]), float(value)))
    return {name: [(step, pytest.approx(value, rel=1e-6)) for step, value in rows] for name, rows in found.items()}


@pytest.mark.filterwarnings("ignore")  # of W&B and MLflow
@pytest.mark.parametrize(
    ("loggers", "said"),
    [
        (f"[{WANDB}, {MLFLOW}]", "trainer.logger is WandbLogger, MLFlowLogger: without a TensorBoardLogger"),
        pytest.param(CSV, "trainer.logger is CSVLogger: without a TensorBoardLogger", marks=pytest.mark.long),
        ("false", "trainer.logger is none: without a TensorBoardLogger"),
        (f"[{TENSORBOARD}, {CSV}, {{class_path: own_logger.Lines}}]", None),
    ],
    ids=["wandb, mlflow", "csv", "none", "tensorboard, csv, own"],
)
def test_a_run_continues_in_its_folder_and_loggers(whole, loggers, said, capfd):
    logger = f"--trainer.logger={loggers}"
    lone = loggers == "false" or "Wandb" in loggers
    part = main("fit", logger, epochs=1 if lone else 2)
    last = RUN / "checkpoints" / "last.ckpt"
    again = str(RUN) if lone else str(last.with_name("last.previous.ckpt"))  # which forgets what came later
    assert last.exists()
    first = RunMetadata.load(RUN).card["start"]
    resumed = main("fit", logger, "--ckpt_path", again)
    weights, epochs, logged = whole
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert [folder.name for folder in sorted(RUN.parent.iterdir())] == ["version_0"]
    record = RunMetadata.load(RUN)
    assert (record.outcome, record.resumed, record.result.name) == ("finished", (first,), "demo")
    measured = [{name: value for name, value in each.items() if name != "lr-AdamW"} for each in epochs]
    assert metrics(RUN) == (measured if loggers == "false" else epochs)  # LearningRateMonitor needs a logger
    assert (RUN / "config.yaml").exists()
    (row,) = read_scoreboard(Path("runs/scoreboard.csv"))
    assert (row["name"], Path(row["log_dir"])) == ("demo", RUN)
    printed = capfd.readouterr()
    assert printed.out.count("train acc %") == printed.out.count("net    DeiT") == 2
    assert (said or "without a TensorBoardLogger") in printed.out or said is None
    assert ("without a TensorBoardLogger" in printed.out) == (said is not None)
    if "CSV" in loggers:
        assert table(RUN) == logged
    if "TensorBoard" in loggers:
        assert curves(RUN) == logged
    if "Wandb" in loggers:
        assert [each.version for each in resumed.trainer.loggers] == [each.version for each in part.trainer.loggers]
        client, run_id = resumed.trainer.loggers[1].experiment, resumed.trainer.loggers[1].run_id
        steps = [point.step for point in client.get_metric_history(run_id, "train/loss_step")]
        assert sorted(steps) == list(range(8))
        second = main("fit", logger, epochs=1)
        assert RunMetadata.load(RUN.with_name("version_1")).outcome == "finished"
        mine, others = ({each.version for each in run.trainer.loggers} for run in (second, part))
        assert not mine & others


@pytest.mark.filterwarnings("ignore:`ModelCheckpoint.monitor='val/acc'.` could not find")
@pytest.mark.parametrize("kind", ["Fails", "Remote"])
def test_a_logger_that_raises_is_named_and_a_remote_one_leaves_the_record_here(kind, capsys):
    arguments = [f"--trainer.logger=own_logger.{kind}", "--trainer.max_steps=2"]
    if kind == "Remote":
        main("fit", *arguments)
        assert RunMetadata.load(RUN).outcome == "finished"
        assert not Path("s3:").exists()
        printed = capsys.readouterr().out
        why = "the run ended after step 2, before any validation; --trainer.val_check_interval 2 validates then."
        assert f"No row on the scoreboard and no best checkpoint: {why}" in printed.splitlines()
        return
    with pytest.raises(PermissionError) as error:
        main("fit", *arguments)
    assert "Fails does not say where its logs are (ConnectionError no answer)." in capsys.readouterr().err
    assert RunMetadata.load(RUN).reason == "PermissionError the key is not valid"
    assert explain(error.value).startswith(
        "the logger Fails failed: the key is not valid (PermissionError in own_logger"
    )


def test_a_folder_that_holds_a_run_is_refused():
    RUN.mkdir(parents=True)
    (RUN / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=f"the folder {RUN} holds a run already: resume it with --ckpt_path {RUN}, or"):
        main("fit", "--trainer.logger.init_args.version=0")
