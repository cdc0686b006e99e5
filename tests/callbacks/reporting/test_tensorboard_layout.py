import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from torch.utils.data import DataLoader

from eigenscope.adapters.tensorboard_names import HParamsRow
from eigenscope.callbacks import EpochTable, TensorBoardLayout
from eigenscope.callbacks.reporting.hparams_page import add_to_page
from eigenscope.charts import Chart, present, train_and_val
from eigenscope.results import MonitoredMetric


class Module(LightningModule):
    """Linear regression with dropout; what is logged in validation is 1 / (epochs so far)."""

    def __init__(self, leaf="mse", schedule=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        self.leaf, self.schedule = leaf, schedule
        self.data = list(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1)))

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.data[:1], batch_size=None)

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log(f"val/{self.leaf}", 1 / (1 + self.current_epoch))

    def configure_optimizers(self):
        groups = [{"params": [self.net[1].weight]}, {"params": [self.net[1].bias], "weight_decay": 0.25}]
        optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
        return optimizer if self.schedule is None else ([optimizer], [self.schedule(optimizer)])

    def charts(self, logged):
        return present([train_and_val("loss", "loss"), Chart("Validation", "score", (f"val/{self.leaf}",))], logged)


def fit(folder, *callbacks, module=None, epochs=2, ckpt_path=None, run="run", prefix="", **options):
    module = Module() if module is None else module
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": TensorBoardLogger(folder, name=None, version=run, default_hp_metric=False, prefix=prefix)}
        | {"enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        | options,
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def judged(leaf="mse", mode="min"):
    return EpochTable(monitor=MonitoredMetric(f"val/{leaf}", mode, percent=False))


def layouts(folder):
    values = [
        value
        for path in sorted(folder.glob("events.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "custom_scalars__config__"
    ]
    parsed = [Layout.FromString(value.tensor.string_val[0]) for value in values]
    return [
        {
            f"{category.title}/{chart.title}": list(chart.multiline.tag)
            for category in x.category
            for chart in category.chart
        }
        for x in parsed
    ]


def test_a_finished_fit_has_one_row_with_figures(tmp_path, monkeypatch, hparams_page):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    fit(tmp_path, judged(), TensorBoardLayout(), epochs=3, gradient_clip_val=0.5, accumulate_grad_batches=2)
    ((parameters, figures),), (hyperparameters, metrics) = hparams_page(tmp_path)
    assert parameters == {
        "module": "Module",
        "net": "Sequential",
        "optimizer": "AdamW",
        "lr": 0.1,
        "weight_decay": 0.5,
        "weight_decay_2": 0.25,
        "precision": "32-true",
        "clip": 0.5,
        "accumulate": 2,
        "ranks": 1,
        "seed": 7,
        "parameters": 5,
        "score": "min val/mse",
        "Differs by": "–",
    }
    assert type(parameters["seed"]) is float
    assert metrics == ["run/best_score", "run/last_score", "run/epochs", "val/mse"]
    assert figures == pytest.approx(
        {"run/best_score": 1 / 3, "run/last_score": 1 / 3, "run/epochs": 3, "val/mse": 1 / 3}
    )
    assert hyperparameters[:4] == ["lr", "net", "optimizer", "seed"]  # which the page shows at first


def test_the_best_score_is_not_the_last_where_more_is_better(tmp_path, hparams_page):
    fit(tmp_path, judged(mode="max"), TensorBoardLayout())
    ((_, figures),), _ = hparams_page(tmp_path)
    assert (figures["run/best_score"], figures["run/last_score"]) == (1, 0.5)


def test_runs_of_different_experiments_share_columns(tmp_path, hparams_page):
    fit(tmp_path, judged(), TensorBoardLayout(), run="a")
    fit(tmp_path, judged("fvu"), TensorBoardLayout(), module=Module("fvu"), epochs=4, run="b")
    found, _ = hparams_page(tmp_path)
    assert [figures["run/best_score"] for _, figures in found] == [0.5, 0.25]
    assert [parameters["score"] for parameters, _ in found] == ["min val/mse", "min val/fvu"]


def test_the_page_begins_with_what_differs_between_the_runs_of_a_folder(tmp_path, hparams_page, monkeypatch):
    for number, (experiment, clip, seed) in enumerate([("a", 0.5, 1), ("a", 1.5, 2), ("b", 0.5, 1), ("b", 0.5, 2)]):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        board = TensorBoardLogger(tmp_path, name=experiment, version=str(number), default_hp_metric=False)
        fit(tmp_path, judged(), TensorBoardLayout(), epochs=1, gradient_clip_val=clip, logger=board)
    for folder in ("a", "b"):  # of b the seeds alone differ: then the columns are those of all experiments
        found, (columns, _) = hparams_page(tmp_path / folder)
        assert columns[:4] == ["Differs by", "clip", "seed", "accumulate"], folder
        assert len(found) == 2
    found, (columns, _) = hparams_page(tmp_path)
    assert columns[:3] == ["Differs by", "clip", "seed"]
    assert [row["clip"] for row, _ in found] == [0.5, 1.5, 0.5, 0.5]
    assert len(list(tmp_path.rglob("events.out.tfevents.hparams"))) == 4


def test_a_column_of_numbers_and_words_is_one_of_words(tmp_path, hparams_page):
    for run, columns in {"a": {"workers": 4, "lr": 0.5}, "b": {"workers": "auto", "lr": 0.25}}.items():
        (tmp_path / run).mkdir()
        add_to_page(tmp_path / run, tmp_path, HParamsRow(columns, ["run/epochs"]), first=())
    found, (columns, metrics) = hparams_page(tmp_path)
    assert [row["workers"] for row, _ in found] == ["4", "auto"]
    assert [row["lr"] for row, _ in found] == [0.5, 0.25]
    assert (columns, metrics) == (["Differs by", "lr", "workers"], ["run/epochs"])


def test_without_a_score_there_are_still_figures(tmp_path, hparams_page):
    fit(tmp_path, TensorBoardLayout(), run="validated")
    fit(tmp_path, TensorBoardLayout(), limit_val_batches=0, run="unvalidated")
    assert hparams_page(tmp_path / "validated")[1][1] == ["run/epochs", "val/mse"]
    assert hparams_page(tmp_path / "unvalidated")[1][1] == ["run/epochs", "train/loss"]


def test_a_resumed_run_keeps_its_one_row_with_new_figures(tmp_path, hparams_page):
    first = fit(tmp_path, judged(), TensorBoardLayout())
    first.save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path, judged(), TensorBoardLayout(), epochs=5, ckpt_path=tmp_path / "last.ckpt")
    ((_, figures),), _ = hparams_page(tmp_path)
    assert (figures["run/epochs"], figures["run/last_score"]) == (5, pytest.approx(0.2))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12),
        lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9),
            "monitor": "val/mse",
        },
    ],
)
def test_the_rate_is_that_of_the_configuration_whatever_the_schedule_made_of_it(schedule, tmp_path, hparams_page):
    module = Module(schedule=schedule)
    fit(tmp_path, TensorBoardLayout(), module=module, epochs=3)
    ((parameters, _),), _ = hparams_page(tmp_path)
    assert parameters["lr"] == pytest.approx(0.1)
    assert "lr_2" not in parameters


def test_the_dashboard_grows_with_what_is_logged_and_is_written_no_oftener(tmp_path):
    fit(tmp_path, TensorBoardLayout(), epochs=5, check_val_every_n_epoch=2)
    loss = {"Training and validation/loss": ["^train/loss$"]}
    assert layouts(tmp_path / "run") == [loss, {**loss, "Validation/score": ["^val/mse$"]}]


def test_a_resumed_run_keeps_the_charts_of_what_it_has_not_measured_again(tmp_path):
    first = fit(tmp_path, TensorBoardLayout(), epochs=2, check_val_every_n_epoch=2)
    first.save_checkpoint(tmp_path / "last.ckpt")
    ckpt = tmp_path / "last.ckpt"
    fit(tmp_path, TensorBoardLayout(), epochs=3, check_val_every_n_epoch=2, ckpt_path=ckpt)
    loss = {"Training and validation/loss": ["^train/loss$"]}
    both = {**loss, "Validation/score": ["^val/mse$"]}
    assert layouts(tmp_path / "run") == [loss, both, both]


def test_callbacks_state_charts_of_what_they_write_by_themselves(tmp_path):
    class Writer(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.logger.log_metrics({"mine/x": 1.0}, step=0)

        def charts(self, logged):
            assert "mine/x" not in logged
            return [Chart("Mine", "x", ("mine/x",))]

    fit(tmp_path, Writer(), TensorBoardLayout(), epochs=1)
    assert layouts(tmp_path / "run")[0]["Mine/x"] == ["^mine/x$"]


def test_the_prefix_of_a_logger_is_before_every_tag(tmp_path, hparams_page):
    fit(tmp_path, judged(), TensorBoardLayout(), epochs=1, prefix="mine")
    assert layouts(tmp_path / "run")[-1]["Validation/score"] == [r"^mine\-val/mse$"]
    ((_, figures),), _ = hparams_page(tmp_path)
    assert figures == {f"mine-{name}": 1 for name in ("run/best_score", "run/last_score", "run/epochs", "val/mse")}


def test_training_is_not_touched(tmp_path):
    ends = []
    for callbacks in ([], [TensorBoardLayout()]):
        module = Module()
        fit(tmp_path, *callbacks, module=module, epochs=3, run=str(len(callbacks)))
        ends.append([*module.state_dict().values(), torch.get_rng_state()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_without_a_board_nothing_is_written(tmp_path):
    fit(tmp_path, TensorBoardLayout(), logger=False)
    fit(tmp_path, TensorBoardLayout(), logger=CSVLogger(tmp_path / "csv"))
    assert not list(tmp_path.rglob("events.*"))
