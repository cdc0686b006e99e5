"""Configurations, command lines and checkpoints of version 0.4 in present names."""

import sys

import pytest
import yaml

import eigenscope.callbacks
from eigenscope import cli, renamed

OLD = """
model:
  class_path: lightning_modules.ImageClassificationModule
  init_args:
    net: {class_path: eigenscope.nn.DeiT, init_args: {width: 16, depth: 1, num_heads: 2, patch_size: 8}}
    optimizer:
      class_path: eigenscope.optim.SplitOptimizer
      init_args:
        lr: 1.0e-3
        matrix: {class_path: eigenscope.optim.SOAP}
        rest: {class_path: torch.optim.AdamW, init_args: {eps: 1.0e-7}}
data:
  class_path: datamodules.SyntheticImagesDataModule
  init_args: {train_size: 100, test_size: 100, protocol: test, augmentation: none, batch_size: 50, num_workers: 0}
trainer:
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: TensorBoardLogger, init_args: {save_dir: runs, name: old}}
  callbacks:
    - class_path: callbacks.EpochTable
      init_args: {score: {name: val/loss, mode: min, percent: false}}
    - class_path: EigenbasisRotation
      init_args: {frames: [previous], shadow_precision: high, emulate: true, k: 2}
    - class_path: callbacks.LastCheckpoint
"""


def test_a_configuration_in_old_names_runs_and_says_the_new_ones_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text(OLD)
    run = cli.main(["fit", "--config", "old.yaml"])
    assert run.trainer.global_step == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Names of version 0.4")]
    for part in (
        "callbacks.LastCheckpoint is now eigenscope.callbacks.ResumeCheckpoint",
        "score of EpochTable is now monitor",
        "frames of EigenbasisRotation is now references",
        "rest of SplitOptimizer is now other",
    ):
        assert part in line
    assert run.trainer.optimizers[0].other.param_groups[0]["eps"] == 1e-7


def test_options_in_old_names():
    args = ["--model.init_args.optimizer.init_args.rest.init_args.eps=1e-7", "--trainer.callbacks+=LastCheckpoint"]
    args += ["--trainer.callbacks+", "callbacks.EpochTable", "--trainer.callbacks.score.name", "val/rest"]
    args += ["--trainer.logger.init_args.name=LastCheckpoint"]
    notes = []
    assert renamed.options(args, notes.append) == [
        "--model.init_args.optimizer.init_args.other.init_args.eps=1e-7",
        "--trainer.callbacks+=ResumeCheckpoint",
        "--trainer.callbacks+",
        "eigenscope.callbacks.EpochTable",
        "--trainer.callbacks.monitor.name",
        "val/rest",
        "--trainer.logger.init_args.name=LastCheckpoint",
    ]
    assert len(notes) == 4


def test_every_new_name_is_there():
    for name in renamed.CLASSES.values():
        assert hasattr(eigenscope.callbacks, name) or name == "HookPoint"


def test_present_names_stay():
    tree = yaml.safe_load(OLD)
    once = renamed.configuration(tree)
    notes = []
    assert renamed.configuration(once, notes.append) == once
    assert notes == []


@pytest.mark.parametrize(("source", "kept"), [("class EpochTable: ...", True), ("raise RuntimeError('trap')", False)])
def test_somebody_elses_package_keeps_its_own_classes(source, kept, tmp_path, monkeypatch):
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)
    assert (renamed.class_path("callbacks.EpochTable") == "callbacks.EpochTable") == kept
    sys.modules.pop("callbacks", None)
    assert renamed.class_path("callbacks.LastCheckpoint") == "eigenscope.callbacks.ResumeCheckpoint"
    sys.modules.pop("callbacks", None)


def test_a_removed_argument_goes_at_its_default_and_is_refused_otherwise(monkeypatch):
    monkeypatch.setattr(renamed, "REMOVED", {"SOAP": {"nesterov": False}})
    soap = {"class_path": "eigenscope.optim.SOAP", "init_args": {"lr": 0.1, "nesterov": False}}
    assert renamed.configuration(soap)["init_args"] == {"lr": 0.1}
    with pytest.raises(renamed.RemovedArgumentError, match="SOAP has no argument nesterov any more"):
        renamed.configuration({**soap, "init_args": {"nesterov": True}})


def test_parameters_of_the_vae():
    assert renamed.parameter("net.squeeze.0.weight") == "net.to_bottleneck.0.weight"
    assert renamed.parameter("weigh.bias") == "gate.bias"
    assert renamed.parameter("net.unsqueeze.0") == "net.unsqueeze.0"


@pytest.mark.parametrize(
    "args", [["--model.init_args.lr_scheduler=OneCycleLR"], ["--model.init_args.lr_scheduler", "OneCycleLR"]]
)
def test_the_short_name_of_a_schedule_that_torch_has_too_is_ours(args):
    assert renamed.options(args)[-1].endswith("eigenscope.optim.OneCycleLR")
    tree = {"lr_scheduler": {"class_path": "CosineAnnealingLR"}, "name": "CosineAnnealingLR"}
    assert renamed.configuration(tree) == {
        "lr_scheduler": {"class_path": "eigenscope.optim.CosineAnnealingLR"},
        "name": "CosineAnnealingLR",
    }
    assert renamed.class_path("torch.optim.lr_scheduler.OneCycleLR") == "torch.optim.lr_scheduler.OneCycleLR"
