"""The callback as somebody uses it from Python."""

import random
import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from eigenscope.callbacks import FiniteGuard, RunMetadataCallback, TrainingInterrupted
from eigenscope.results import RunMetadata


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


class NamedTwice(Named):
    def val_dataloader(self):
        return DataLoader([torch.zeros(2)])


class At(Callback):
    """Does something in the second step."""

    def __init__(self, action):
        self.action = action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.action(trainer)


def train(folder, *more, module=None, data=None, **options):
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
    trainer.fit(Dropping() if module is None else module, datamodule=data or Named())
    return trainer


def test_from_python_there_are_the_hyperparameters(tmp_path, settings):
    train(tmp_path, RunMetadataCallback())
    record = RunMetadata.load(tmp_path / "run")
    assert record.card["configuration"] == {"model": {"class": "Dropping", "width": 4}, "data": {"class": "Named"}}
    assert all(asked is None for asked, _, _ in settings(record.card).values())
    assert settings(record.card)["learning rate"][1] == "0.1"
    assert record.card["data"] == {"module": "Named", "train": "abc (10 samples)"}
    assert record.card["parameters"]["parts"] == {
        "layers.0": {"trainable": 16, "frozen": 0, "buffers": 0},
        "layers.2": {"trainable": 5, "frozen": 0, "buffers": 0},
    }
    assert (record.outcome, record.result) == ("finished", None)
    card = RunMetadataCallback()
    trainer = train(tmp_path / "again", card)
    assert card.state_dict()["samples"] == 20
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, datamodule=Named())  # goes on with the same trainer
    second = RunMetadata.load(tmp_path / "again" / "run")
    assert [start["step"] for start in second.resumed] == [0]
    assert second.card["start"]["step"] == 6


def test_the_clock_of_training_stands_in_validation(tmp_path):
    card = RunMetadataCallback()
    watch = InValidation(card)
    train(tmp_path, card, watch, module=Validated(), data=NamedTwice())
    before, first, second = watch.read
    assert before[0]["seconds"] == before[1]["seconds"] == 0  # not begun: a look whether validation works
    for one, other in (first, second):
        assert one["training_seconds"] == other["training_seconds"] < one["seconds"] < other["seconds"]
    assert first[0]["training_seconds"] < second[0]["training_seconds"]


def test_a_batch_of_another_size_than_asked_is_marked(tmp_path, settings):
    card = RunMetadataCallback()
    card.configuration = {"data": {"class_path": "Named", "init_args": {"batch_size": 5}}}
    train(tmp_path, card)
    found = settings(RunMetadata.load(tmp_path / "run").card)
    assert {name for name, (_, _, differs) in found.items() if differs} == {"batch size over all ranks"}
    assert found["batch size over all ranks"][:2] == (5, 4)


def test_weights_and_random_streams_are_the_same_with_and_without(tmp_path):
    ends = []
    for name, more in (("with", [RunMetadataCallback()]), ("without", [])):
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
def test_a_run_that_does_not_come_to_its_end_says_why(tmp_path, error, outcome, reason, texts):
    with pytest.raises(type(error)):
        train(tmp_path, RunMetadataCallback(), failing(error))
    record = RunMetadata.load(tmp_path / "run")
    assert (record.outcome, record.reason) == (outcome, reason)
    assert record.seconds > 0
    assert set(record.peak_memory) == {"cpu"}
    assert f"{reason} |" in texts(tmp_path / "run")["outcome"]


def test_the_interrupt_key(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            train(tmp_path, RunMetadataCallback(), failing(KeyboardInterrupt()))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    record = RunMetadata.load(tmp_path / "run")
    assert (record.outcome, record.reason) == ("interrupted", "KeyboardInterrupt")


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_not_finite_is_the_reason(tmp_path, order):
    def spoil(trainer):
        with torch.no_grad():
            trainer.lightning_module.layers[2].bias.fill_(torch.nan)

    with pytest.raises(RuntimeError, match="step 1"):
        train(tmp_path, At(spoil), *[FiniteGuard(), RunMetadataCallback()][::order])
    record = RunMetadata.load(tmp_path / "run")
    assert (record.outcome, record.stopped.step) == ("stopped", 1)
    assert record.reason == record.stopped.reason
    assert record.card["data"]["module"] == "Named"


def test_a_record_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    def spoil(trainer):
        trainer.logger.experiment.flush()  # TensorBoard's thread has its file open now, and goes on writing there
        (tmp_path / "run").rename(tmp_path / "away")
        (tmp_path / "run").write_text("in the way")
        raise RuntimeError("first")

    with pytest.raises(RuntimeError, match="first") as caught:
        train(tmp_path, RunMetadataCallback(), At(spoil))
    (note,) = caught.value.__notes__
    assert note.startswith("The run metadata could not be written: ")
