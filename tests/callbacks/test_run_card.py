import os
import random
import shlex
import shutil
import signal
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

import cli
from callbacks import FiniteGuard, RunCard, TrainingInterrupted
from callbacks.asked_and_live import asked_and_live
from eigenscope.study import RunRecord

CONFIGS = Path(__file__).parents[2] / "configs"
NET = "--model.init_args.net.init_args"
SMALL = [
    *(f"{NET}.{option}" for option in ("width=16", "depth=2", "num_heads=2")),
    *(f"--data.init_args.{option}" for option in ("train_size=100", "test_size=50", "batch_size=50", "num_workers=0")),
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
REKLS = ["--config", str(CONFIGS / "optimizer" / "rekls.yaml")]
HALF = [f"--data.init_args.{option}" for option in ("holdout_fraction=0.5", "train_size=200", "batch_size=45")]
FOLDER = Path("runs/demo/version_0")


def fit(*more):
    return cli.main(["fit", "--config", str(CONFIGS / "demo.yaml"), *SMALL, *more])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One finished run and its folder."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("demo"))
    try:
        return fit("--data.init_args.protocol=holdout", *HALF), Path.cwd() / FOLDER
    finally:
        os.chdir(here)


def texts(folder):
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("run/") and tag.endswith("/text_summary")]
    return {
        tag.removeprefix("run/").removesuffix("/text_summary"): events.Tensors(tag)[-1]
        .tensor_proto.string_val[0]
        .decode()
        for tag in tags
    }


def settings(card):
    return {setting["name"]: (setting["asked"], setting["live"], setting["differs"]) for setting in card["settings"]}


def test_the_card_of_a_run_from_the_command_line(demo):
    run, folder = demo
    record = RunRecord.load(folder)
    card = record.card
    assert not any(setting["differs"] for setting in card["settings"])
    expected = {
        "optimizer": ("AdamW", "AdamW"),
        "learning rate": (0.001, "4e-05, from 0.001 by OneCycleLR"),
        "seed": (0, 0),
        "batch size over all ranks": (45, 45),
        "gradient clipping": ("1 by norm", "1 by norm"),
        "accelerator": ("cpu", "cpu"),
        "world size": (None, 1),
        "compiled": ("no", "no"),
    }
    assert {name: settings(card)[name][:2] for name in expected} == expected
    configuration = card["configuration"]
    assert configuration["data"]["init_args"]["batch_size"] == 45
    assert (
        configuration["model"]["init_args"]["net"]["init_args"]["mlp_ratio"]
        == run.model.hparams.net["init_args"]["mlp_ratio"]
    )
    parameters = card["parameters"]
    assert sum(parameters["total"][kind] for kind in ("trainable", "frozen")) == record.result.parameters
    for kind, number in parameters["total"].items():
        assert sum(part[kind] for part in parameters["parts"].values()) == number
    assert {"net.blocks", "net.head", "net.positions"} < set(parameters["parts"])
    assert set(card["data"]) == {"module", "train", "val"}  # the test set is read after the fit
    assert card["routing"] == {}
    assert card["start"]["step"] == 0
    assert card["start"]["commit"] == card["code"]["commit"]
    assert card["start"]["command"] == shlex.join(sys.orig_argv)


def test_the_end_of_a_run_from_the_command_line(demo):
    _, folder = demo
    record = RunRecord.load(folder)
    assert (record.outcome, record.reason, record.resumed, record.stopped) == ("finished", "", (), None)
    assert set(record.peak_memory) == {"cpu"}
    assert record.samples_per_second > 90 / record.seconds > 0  # two batches in less time than the whole
    shown = texts(folder)
    assert set(shown) == {"card", "configuration", "outcome", "test"}
    assert "best val/acc" in shown["outcome"]
    assert "| outcome" in shown["outcome"]
    assert "finished |" in shown["outcome"]
    assert f"{record.result.test['test/acc']:.6g} |" in shown["test"]
    assert "        batch_size: 45" in shown["configuration"].splitlines()
    for word in ("### Asked and live", "AdamW |", "net.blocks", "### Data", "torchmetrics", "⚠"):
        assert (word in shown["card"]) == (word != "⚠"), word
    widths = {line.count(" | ") for line in shown["card"].splitlines() if line.startswith("| learning rate")}
    assert widths == {3}


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("model.init_args.optimizer.init_args.lr", 0.01, "learning rate"),
        ("model.init_args.optimizer.class_path", "torch.optim.SGD", "optimizer"),
        ("model.init_args.compile_net", True, "compiled"),
        ("trainer.precision", "bf16-mixed", "precision"),
        ("trainer.gradient_clip_val", 0.5, "gradient clipping"),
        ("trainer.gradient_clip_val", None, "gradient clipping"),
        ("trainer.accumulate_grad_batches", 2, "batches a step"),
        ("trainer.accelerator", "gpu", "accelerator"),
        ("trainer.devices", "2", "devices"),
        ("trainer.devices", [0, 1], "devices"),
        ("trainer.strategy", "ddp", "strategy"),
        ("seed_everything", 1, "seed"),
        ("trainer.precision", 32, None),
        ("trainer.accelerator", "auto", None),
        ("trainer.devices", 1, None),
        ("seed_everything", True, None),
        ("model.init_args.optimizer", None, None),
        ("trainer", None, None),
    ],
)
def test_a_request_that_is_not_met_is_marked(demo, path, value, name):
    run, folder = demo
    asked = deepcopy(RunRecord.load(folder).card["configuration"])
    *parents, leaf = path.split(".")
    place = asked
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    torch.manual_seed(0)  # as it was in the fit
    found = asked_and_live(run.trainer, run.model, asked)
    assert [setting.name for setting in found if setting.differs] == ([] if name is None else [name])


def test_a_precision_of_one_backend_alone(demo):
    run, _ = demo
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        (found,) = [setting for setting in asked_and_live(run.trainer, run.model, {}) if "matmul" in setting.name]
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert found.live == f"{torch.backends.mkldnn.matmul.fp32_precision} on cpu"
    assert torch.get_float32_matmul_precision() == "highest"


def test_rekls_and_a_precision_that_is_replaced(monkeypatch):
    monkeypatch.setattr(cli, "has_bf16", lambda device: False)
    matrix = "--model.init_args.optimizer.init_args.matrix.init_args"
    fit(*REKLS, f"{matrix}.fp32_matmul_prec=high", "--trainer.precision=bf16-mixed")
    record = RunRecord.load(FOLDER)
    found = settings(record.card)
    marked = {name: values[:2] for name, values in found.items() if values[2]}
    assert marked == {
        "precision": ("bf16-mixed", "32-true"),
        "fp32_matmul_prec of REKLS": ("high", "highest: cpu has no TF32"),
    }
    assert found["optimizer"][:2] == ("SplitOptimizer of REKLS+AdamW",) * 2
    assert found["qr_fp32_matmul_prec of REKLS"][:2] == ("highest", "highest")
    for side in ("matrix", "rest"):
        assert found[f"learning rate of {side}"] == (0.001, "4e-05, from 0.001 by OneCycleLR", False)
    routing = record.card["routing"]
    assert routing["REKLS"]["blocks.0.attention.qkv.weight"] == "matrix"
    assert routing["AdamW"]["head.4.weight"] == "excluded by head.*"
    assert record.result.optimizer == "REKLS+AdamW"
    assert record.card["configuration"]["trainer"]["precision"] == "bf16-mixed"
    marks = [line for line in texts(FOLDER)["card"].splitlines() if "⚠" in line]
    assert [line.split("|")[1].strip() for line in marks] == ["precision", "fp32_matmul_prec of REKLS"]


def test_a_resumed_run_goes_on_in_its_record():
    fit()
    first = RunRecord.load(FOLDER)
    checkpoint = FOLDER / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["RunCard"]
    assert saved["samples"] == 100
    assert 0 < saved["training_seconds"] < saved["seconds"] <= first.seconds
    fit("--ckpt_path", str(checkpoint), "--trainer.max_epochs=2")
    second = RunRecord.load(FOLDER)
    assert second.resumed == (first.card["start"],)
    assert second.card["start"]["step"] == 2
    assert second.card["configuration"]["trainer"]["max_epochs"] == 2
    assert second.outcome == "finished"
    assert len(second.result.epochs) == 2
    assert second.seconds > saved["seconds"]
    last = torch.load(checkpoint, weights_only=True)["callbacks"]["RunCard"]
    assert (last["samples"], last["starts"]) == (200, [first.card["start"], second.card["start"]])
    assert second.samples_per_second == pytest.approx(200 / last["training_seconds"], rel=0.5)
    assert "earlier start 1" in texts(FOLDER)["outcome"]


@pytest.mark.parametrize("options", [["--trainer.logger=false"], ["--trainer.fast_dev_run=true"]])
def test_nothing_is_written_without_logs(tmp_path, options):
    fit(*options, "--trainer.enable_checkpointing=false", "--trainer.callbacks=null")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_may_name_the_callback():
    run = fit("--trainer.callbacks+=RunCard")
    assert [type(callback) for callback in run.trainer.callbacks].count(RunCard) == 1
    assert RunRecord.load(FOLDER).card["configuration"]["seed_everything"] == 0


def test_a_run_that_is_refused_leaves_the_record_of_the_one_before():
    fit()
    before = (FOLDER / "run.json").read_text()
    checkpoint = str(FOLDER / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="contradicts"):
        fit("--ckpt_path", checkpoint, "--model.init_args.label_smoothing=0.5", "--trainer.max_epochs=2")
    assert (FOLDER / "run.json").read_text() == before


def test_a_foreign_board_is_found_before_training():
    Path("runs").mkdir()
    Path("runs/scoreboard.csv").write_text("name,best\nsomething,else\n")
    with pytest.raises(ValueError, match="is not a scoreboard: row 1 has 'else' for best"):
        fit()
    assert not (FOLDER / "run.json").exists()


def fit_and_look(arguments):
    """On each rank."""
    run = cli.main(["fit", "--config", str(CONFIGS / "demo.yaml"), *arguments])
    (card,) = [callback for callback in run.trainer.callbacks if isinstance(callback, RunCard)]
    return card._folder is not None


@pytest.mark.xdist_group("ddp")
def test_rank_zero_alone_writes_for_all(two_ranks):
    arguments = [*SMALL, "--trainer.strategy=ddp", "--trainer.devices=2"]
    assert [outcome.value for outcome in two_ranks.run(fit_and_look, arguments)] == [True, False]
    record = RunRecord.load(FOLDER)
    found = settings(record.card)
    assert found["world size"][1] == found["devices"][1] == 2
    assert found["batch size over all ranks"] == (50, 50, False)
    assert found["strategy"] == ("ddp", "DDPStrategy", False)
    assert set(record.peak_memory) == {"rank 0, cpu", "rank 1, cpu"}
    saved = torch.load(FOLDER / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["RunCard"]
    assert saved["samples"] == 100
    assert not (FOLDER.parent / "version_1").exists()


class Dropping(LightningModule):
    """A module of somebody who does not use the command line."""

    def __init__(self, width=4):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        return self.layers(batch["x"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Named(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"x": row} for row in x], batch_size=4, shuffle=True)

    def fingerprint(self):
        return {"train": "abc (10 samples)"}


class InValidation(Callback):
    """Reads the clocks of a card twice in each validation."""

    def __init__(self, card):
        self.card = card
        self.read = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.read.append([self.card.state_dict() for _ in range(2)])


class Validated(Dropping):
    def validation_step(self, batch, batch_idx):
        return None

    def val_dataloader(self):
        return DataLoader([torch.zeros(2)])


class At(Callback):
    """Does something in the second step."""

    def __init__(self, action):
        self.action = action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.action(trainer)


def train(folder, *more, module=None, **options):
    torch.manual_seed(0)
    random.seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="run"),
        callbacks=list(more),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 2} | options,
    )
    trainer.fit(Dropping() if module is None else module, datamodule=Named())
    return trainer


def test_from_python_there_are_the_hyperparameters(tmp_path):
    train(tmp_path, RunCard())
    record = RunRecord.load(tmp_path / "run")
    assert record.card["configuration"] == {"model": {"class": "Dropping", "width": 4}, "data": {"class": "Named"}}
    assert all(asked is None for asked, _, _ in settings(record.card).values())
    assert settings(record.card)["learning rate"][1] == "0.1"
    assert record.card["data"] == {"module": "Named", "train": "abc (10 samples)"}
    assert record.card["parameters"]["parts"] == {
        "layers.0": {"trainable": 16, "frozen": 0, "buffers": 0},
        "layers.2": {"trainable": 5, "frozen": 0, "buffers": 0},
    }
    assert (record.outcome, record.result) == ("finished", None)
    card = RunCard()
    trainer = train(tmp_path / "again", card)
    assert card.state_dict()["samples"] == 20
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, datamodule=Named())  # goes on with the same trainer
    second = RunRecord.load(tmp_path / "again" / "run")
    assert [start["step"] for start in second.resumed] == [0]
    assert second.card["start"]["step"] == 6


def test_the_clock_of_training_stands_in_validation(tmp_path):
    card = RunCard()
    watch = InValidation(card)
    train(tmp_path, card, watch, module=Validated())
    before, first, second = watch.read
    assert before[0]["seconds"] == before[1]["seconds"] == 0  # not begun: a look whether validation works
    for one, other in (first, second):
        assert one["training_seconds"] == other["training_seconds"] < one["seconds"] < other["seconds"]
    assert first[0]["training_seconds"] < second[0]["training_seconds"]


def test_a_batch_of_another_size_than_asked_is_marked(tmp_path):
    card = RunCard()
    card.configuration = {"data": {"class_path": "Named", "init_args": {"batch_size": 5}}}
    train(tmp_path, card)
    found = settings(RunRecord.load(tmp_path / "run").card)
    assert {name for name, (_, _, differs) in found.items() if differs} == {"batch size over all ranks"}
    assert found["batch size over all ranks"][:2] == (5, 4)


def test_weights_and_random_streams_are_the_same_with_and_without(tmp_path):
    ends = []
    for name, more in (("with", [RunCard()]), ("without", [])):
        trainer = train(tmp_path / name, *more)
        weights = torch.cat([p.detach().flatten() for p in trainer.lightning_module.parameters()])
        ends.append((weights, torch.get_rng_state(), random.getstate()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    assert sorted(path.name for path in (tmp_path / "with" / "run").iterdir() if "tfevents" not in path.name) == [
        "hparams.yaml",
        "run.json",
    ]


def failing(error):
    def fail(trainer):
        raise error

    return At(fail)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (RuntimeError("no\nluck"), "failed", "RuntimeError no luck"),
        (RuntimeError("x" * 1000), "failed", "RuntimeError " + "x" * 287),
        (
            TrainingInterrupted("SIGTERM ended the run", signal.SIGTERM),
            "interrupted",
            "TrainingInterrupted SIGTERM ended the run",
        ),
        (SystemExit(143), "interrupted", "SystemExit 143"),
    ],
)
def test_a_run_that_does_not_come_to_its_end_says_why(tmp_path, error, outcome, reason):
    with pytest.raises(type(error)):
        train(tmp_path, RunCard(), failing(error))
    record = RunRecord.load(tmp_path / "run")
    assert (record.outcome, record.reason) == (outcome, reason)
    assert record.seconds > 0
    assert set(record.peak_memory) == {"cpu"}
    assert f"{reason} |" in texts(tmp_path / "run")["outcome"]


def test_the_interrupt_key(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            train(tmp_path, RunCard(), failing(KeyboardInterrupt()))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    record = RunRecord.load(tmp_path / "run")
    assert (record.outcome, record.reason) == ("interrupted", "KeyboardInterrupt")


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_not_finite_is_the_reason(tmp_path, order):
    def spoil(trainer):
        with torch.no_grad():
            trainer.lightning_module.layers[2].bias.fill_(torch.nan)

    with pytest.raises(RuntimeError, match="step 1"):
        train(tmp_path, At(spoil), *[FiniteGuard(), RunCard()][::order])
    record = RunRecord.load(tmp_path / "run")
    assert (record.outcome, record.stopped.step) == ("stopped", 1)
    assert record.reason == record.stopped.reason
    assert record.card["data"]["module"] == "Named"


def test_a_record_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    def spoil(trainer):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("in the way")
        raise RuntimeError("first")

    with pytest.raises(RuntimeError, match="first") as caught:
        train(tmp_path, RunCard(), At(spoil))
    (note,) = caught.value.__notes__
    assert note.startswith("The run's record could not be written: ")
