"""The record of runs from the command line, which all have the callback."""

import os
import shlex
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from eigenscope import cli
from eigenscope.callbacks import RunMetadataCallback
from eigenscope.callbacks.reporting.effective_settings import effective_settings
from eigenscope.cli import lightning_cli
from eigenscope.results import RunMetadata

CONFIGS = Path(__file__).parents[3] / "configs"
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


def test_the_card_of_a_run_from_the_command_line(demo, settings):
    run, folder = demo
    record = RunMetadata.load(folder)
    card = record.card
    assert not any(setting["differs"] for setting in card["settings"])
    expected = {
        "optimizer": ("AdamW", "AdamW"),
        "learning rate": (0.001, "0.000636833, from 0.001 by OneCycleLR"),  # its first of 2 steps
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


def test_the_end_of_a_run_from_the_command_line(demo, texts):
    _, folder = demo
    record = RunMetadata.load(folder)
    assert (record.outcome, record.reason, record.resumed, record.stopped) == ("finished", "", (), None)
    assert set(record.peak_memory) == {"cpu"}
    assert record.samples_per_second > 90 / record.seconds > 0  # two batches in less time than the whole
    shown = texts(folder)
    assert set(shown) == {"metadata", "configuration", "outcome", "test"}
    assert "best val/acc" in shown["outcome"]
    assert "| outcome" in shown["outcome"]
    assert "finished |" in shown["outcome"]
    assert f"{record.result.test['test/acc']:.6g} |" in shown["test"]
    assert "        batch_size: 45" in shown["configuration"].splitlines()
    for word in ("### Asked and live", "AdamW |", "net.blocks", "### Data", "torchmetrics", "⚠"):
        assert (word in shown["metadata"]) == (word != "⚠"), word
    widths = {line.count(" | ") for line in shown["metadata"].splitlines() if line.startswith("| learning rate")}
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
    asked = deepcopy(RunMetadata.load(folder).card["configuration"])
    *parents, leaf = path.split(".")
    place = asked
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    found = effective_settings(run.trainer, run.model, asked, seed=0)
    assert [setting.name for setting in found if setting.differs] == ([] if name is None else [name])


def test_a_precision_of_one_backend_alone(demo):
    run, _ = demo
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        (found,) = [
            setting for setting in effective_settings(run.trainer, run.model, {}, 0) if "matmul" in setting.name
        ]
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert found.live == f"{torch.backends.mkldnn.matmul.fp32_precision} on cpu"
    assert torch.get_float32_matmul_precision() == "highest"


def test_rekls_and_a_precision_that_is_replaced(monkeypatch, texts, settings):
    monkeypatch.setattr(lightning_cli, "has_bf16", lambda device: False)
    matrix = "--model.init_args.optimizer.init_args.matrix.init_args"
    fit(*REKLS, f"{matrix}.fp32_matmul_prec=high", "--trainer.precision=bf16-mixed")
    record = RunMetadata.load(FOLDER)
    found = settings(record.card)
    marked = {name: values[:2] for name, values in found.items() if values[2]}
    assert marked == {
        "precision": ("bf16-mixed", "32-true"),
        "fp32_matmul_prec of REKLS": ("high", "highest: cpu has no TF32"),
    }
    assert found["optimizer"][:2] == ("SplitOptimizer of REKLS+AdamW",) * 2
    assert found["qr_fp32_matmul_prec of REKLS"][:2] == ("highest", "highest")
    for side in ("matrix", "other"):
        assert found[f"learning rate of {side}"] == (0.001, "0.000636833, from 0.001 by OneCycleLR", False)
    routing = record.card["routing"]
    assert routing["REKLS"]["blocks.0.attention.qkv.weight"] == "matrix"
    assert routing["AdamW"]["head.4.weight"] == "excluded by head.*"
    assert record.result.optimizer == "REKLS+AdamW"
    assert record.card["configuration"]["trainer"]["precision"] == "bf16-mixed"
    marks = [line for line in texts(FOLDER)["metadata"].splitlines() if "⚠" in line]
    assert [line.split("|")[1].strip() for line in marks] == ["precision", "fp32_matmul_prec of REKLS"]


def test_a_resumed_run_goes_on_in_its_record(texts):
    fit()
    first = RunMetadata.load(FOLDER)
    checkpoint = FOLDER / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["RunMetadataCallback"]
    assert saved["samples"] == 100
    assert 0 < saved["training_seconds"] < saved["seconds"] <= first.seconds
    fit("--ckpt_path", str(checkpoint), "--trainer.max_epochs=2")
    second = RunMetadata.load(FOLDER)
    assert second.resumed == (first.card["start"],)
    assert second.card["start"]["step"] == 2
    assert second.card["configuration"]["trainer"]["max_epochs"] == 2
    assert second.outcome == "finished"
    assert len(second.result.epochs) == 2
    assert second.seconds > saved["seconds"]
    last = torch.load(checkpoint, weights_only=True)["callbacks"]["RunMetadataCallback"]
    assert (last["samples"], last["starts"]) == (200, [first.card["start"], second.card["start"]])
    assert second.samples_per_second == pytest.approx(200 / last["training_seconds"], rel=0.5)
    assert "earlier start 1" in texts(FOLDER)["outcome"]


def test_a_trial_of_one_batch_writes_nothing(tmp_path):
    fit("--trainer.fast_dev_run=true")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_may_name_the_callback():
    run = fit("--trainer.callbacks+=RunMetadataCallback")
    assert [type(callback) for callback in run.trainer.callbacks].count(RunMetadataCallback) == 1
    assert RunMetadata.load(FOLDER).card["configuration"]["seed_everything"] == 0


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
    (card,) = [callback for callback in run.trainer.callbacks if isinstance(callback, RunMetadataCallback)]
    return card._folder is not None


@pytest.mark.xdist_group("ddp")
def test_rank_zero_alone_writes_for_all(two_ranks, settings):
    arguments = [*SMALL, "--trainer.strategy=ddp", "--trainer.devices=2"]
    assert [outcome.value for outcome in two_ranks.run(fit_and_look, arguments)] == [True, False]
    record = RunMetadata.load(FOLDER)
    found = settings(record.card)
    assert found["world size"][1] == found["devices"][1] == 2
    assert found["batch size over all ranks"] == (50, 50, False)
    assert found["strategy"] == ("ddp", "DDPStrategy", False)
    assert set(record.peak_memory) == {"rank 0, cpu", "rank 1, cpu"}
    saved = torch.load(FOLDER / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["RunMetadataCallback"]
    assert saved["samples"] == 100
    assert not (FOLDER.parent / "version_1").exists()
