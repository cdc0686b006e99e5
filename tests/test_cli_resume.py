import copy
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from eigenscope import callbacks, cli
from eigenscope.checkpoints import read_checkpoint, write_checkpoint
from eigenscope.cli import lightning_cli

CONFIGS = Path(__file__).parents[1] / "configs"
NET = "--model.init_args.net.init_args"
EACH_EPOCH = yaml.safe_dump(
    {
        "class_path": "ModelCheckpoint",
        "init_args": {"filename": "{epoch}", "save_top_k": -1, "enable_version_counter": False},
    },
    default_flow_style=True,
)


def arguments(*more, epochs=1, net=True):
    """A tiny demo whose logs are in runs/demo, in the working directory."""
    return [
        "--config",
        str(CONFIGS / "demo.yaml"),
        *([f"{NET}.width=16", f"{NET}.depth=2", f"{NET}.num_heads=2", f"{NET}.dropout=0.1"] if net else []),
        *(
            f"--data.init_args.{option}"
            for option in ("train_size=100", "test_size=50", "batch_size=25", "num_workers=0")
        ),
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={epochs}",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.callbacks+={EACH_EPOCH}",
        *more,
    ]


def fit(*more, epochs=1, net=True):
    return cli.main(["fit", *arguments(*more, epochs=epochs, net=net)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One finished run of three epochs with a checkpoint of each."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("begun"))
    try:
        fit(epochs=3)
        return Path.cwd() / "runs"
    finally:
        os.chdir(here)


@pytest.fixture
def begun(runs, tmp_path, monkeypatch):
    """A copy of that run's folder, below the working directory."""
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs/demo/version_0")


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def refusal(*args):
    with pytest.raises(lightning_cli.ConfigurationError) as error:
        cli.main(list(args))
    return str(error.value)


def without_configuration(path, **changes):
    checkpoint = read_checkpoint(path)
    del checkpoint["configuration"]
    write_checkpoint(checkpoint | changes, Path("old.ckpt"))
    return "old.ckpt"


@pytest.mark.parametrize("name", ["epoch=0.ckpt", "last.previous.ckpt"])  # after an epoch, before a batch
def test_a_resumed_run_goes_on_in_its_folder_as_if_it_had_not_been_stopped(begun, name):
    saved = (begun / "config.yaml").read_bytes()
    whole = scalars(begun)
    ckpt = begun / "checkpoints" / name
    checkpoint = read_checkpoint(ckpt)
    step, when = checkpoint["global_step"], checkpoint["saved_at"]
    with SummaryWriter(str(begun), filename_suffix=".by_hand") as writer:  # as of a callback that counts from one
        writer.add_scalar("mine", 1.0, step, walltime=when - 1)
        writer.add_scalar("val/gap", 9.0, step, walltime=when - 1)
        writer.add_scalar("mine", 2.0, step + 1, walltime=when + 1)
    run = fit(f"--ckpt_path={ckpt}", epochs=3)
    assert Path(run.trainer.log_dir).resolve() == begun.resolve()
    assert [folder.name for folder in begun.parent.iterdir()] == ["version_0"]
    assert (begun / "config.yaml").read_bytes() == saved
    resumed = scalars(begun)
    assert resumed.pop("mine") == [(step, 1.0)]
    assert [s for s, _ in resumed["train/loss_step"]] == list(range(12))
    whole["val/gap"] = sorted([*whole["val/gap"], (step, 9.0)])
    for tag, points in whole.items():
        if tag.startswith(("train/", "val/", "lr-")):
            assert resumed[tag] == points, tag


def test_a_runs_folder_means_its_last_checkpoint_and_a_finished_run_stays_whole(begun):
    whole = scalars(begun)
    run = fit(f"--ckpt_path={begun}", epochs=3)
    assert run.config.fit.ckpt_path == str(begun / "checkpoints" / "last.ckpt")
    assert run.trainer.global_step == 12
    after = scalars(begun)
    assert {tag: points for tag, points in after.items() if tag.startswith(("train/", "val/", "lr-"))} == {
        tag: points for tag, points in whole.items() if tag.startswith(("train/", "val/", "lr-"))
    }
    again = fit(f"--ckpt_path={begun}", epochs=4)
    assert [s for s, _ in scalars(begun)["train/loss_step"]] == list(range(16))
    assert all(count == 1 for count in Counter(s for s, _ in scalars(begun)["lr-AdamW"]).values())
    assert again.trainer.global_step == 16


def test_without_a_last_checkpoint_a_folder_means_its_newest(begun):
    for name in ("last.ckpt", "last.previous.ckpt", "best.ckpt"):
        (begun / "checkpoints" / name).unlink(missing_ok=True)
    os.utime(begun / "checkpoints" / "epoch=1.ckpt", (2e9, 2e9))
    assert lightning_cli.find_checkpoint(str(begun)) == begun / "checkpoints" / "epoch=1.ckpt"
    assert lightning_cli.find_checkpoint(str(begun / "checkpoints")) == begun / "checkpoints" / "epoch=1.ckpt"
    shutil.rmtree(begun / "checkpoints")
    assert "there is no checkpoint in the folder" in refusal("fit", *arguments(f"--ckpt_path={begun}"))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("option", ["version=mine", "name=other"])
def test_another_version_or_name_opens_a_new_folder(begun, option):
    place = f"--trainer.logger.init_args.{option}"
    run = fit(f"--ckpt_path={begun / 'checkpoints' / 'epoch=0.ckpt'}", place, epochs=2)
    assert Path(run.trainer.log_dir) == Path(
        {"version=mine": "runs/demo/mine", "name=other": "runs/other/version_0"}[option]
    )
    assert [s for s, _ in scalars(run.trainer.log_dir)["train/loss_step"]] == [4, 5, 6, 7]
    assert (Path(run.trainer.log_dir) / "config.yaml").exists()


def test_every_contradiction_is_listed_and_nothing_is_written(begun):
    before = sorted(Path().rglob("*"))
    said = refusal(
        "fit",
        *arguments(f"--ckpt_path={begun}", f"--config={CONFIGS / 'optimizer' / 'soap.yaml'}", epochs=4),
        *("--seed_everything=3", f"{NET}.width=32", "--data.init_args.batch_size=20", "--trainer.precision=bf16-true"),
        *(
            "--trainer.gradient_clip_val=2",
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.monitor=val/loss",
        ),
        *(
            "--trainer.callbacks+=DeviceStatsMonitor",
            "--trainer.limit_train_batches=2",
            "--trainer.log_every_n_steps=7",
        ),
    )
    first, *lines, last = said.splitlines()
    path = begun / "checkpoints" / "last.ckpt"
    assert first == f"the configuration contradicts that of the checkpoint {path}:"
    assert sorted(lines) == sorted(
        [
            "  seed_everything: checkpoint 0, now 3",
            "  trainer.precision: checkpoint 32-true, now bf16-true",
            "  trainer.limit_train_batches: checkpoint None, now 2",
            "  trainer.gradient_clip_val: checkpoint 1.0, now 2",
            "  model.init_args.net.init_args.width: checkpoint 16, now 32",
            "  model.init_args.optimizer.class_path: checkpoint torch.optim.AdamW, now eigenscope.optim.SplitOptimizer",
            "  data.init_args.batch_size: checkpoint 25, now 20",
        ]
    )
    assert f"start a new run, --warm_start {path}, or permit" in last
    assert sorted(Path().rglob("*")) == before


def test_the_saved_configuration_resumes_and_evaluates(begun):
    given = ["--config", str(begun / "config.yaml"), f"--ckpt_path={begun}"]
    assert cli.main(["fit", *given, "--trainer.max_epochs=3"]).trainer.global_step == 12
    run = cli.main(["validate", *given, "--trainer.logger=false", "--seed_everything=7"])
    logged = dict(scalars(begun)["val/loss"])[11]
    assert float(run.trainer.callback_metrics["val/loss"]) == pytest.approx(logged, rel=1e-6)


def test_what_evaluates_must_be_the_network_of_the_checkpoint(begun):
    path = begun / "checkpoints" / "best.ckpt"
    said = refusal("test", *arguments(f"--ckpt_path={path}", f"{NET}.width=32", f"{NET}.depth=3"))
    assert said.splitlines() == [
        f"the network is not that of the checkpoint {path}:",
        "  model.init_args.net.init_args.width: checkpoint 16, now 32",
        "  model.init_args.net.init_args.depth: checkpoint 2, now 3",
    ]
    said = refusal("predict", *arguments(f"--ckpt_path={path}", "--data.init_args.image_size=24"))
    assert said.splitlines() == [
        f"the weights of checkpoint {path} do not fit the model:",
        "  net.positions is (1, 65, 16) in the checkpoint, (1, 37, 16) in the module",
    ]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_without_configuration_is_compared_by_its_model(begun, capsys):
    old = without_configuration(begun / "checkpoints" / "epoch=0.ckpt")
    said = refusal("fit", *arguments(f"--ckpt_path={old}", f"{NET}.depth=3", epochs=2))
    assert said.splitlines()[1:-1] == ["  model.init_args.net.init_args.depth: checkpoint 2, now 3"]
    assert "net.init_args.depth" in refusal("validate", *arguments(f"--ckpt_path={old}", f"{NET}.depth=3"))
    run = fit(f"--ckpt_path={old}", "--seed_everything=3", epochs=2)
    assert run.trainer.global_step == 8
    assert "checkpoint old.ckpt holds no configuration: its model alone was compared" in capsys.readouterr().out
    old = without_configuration(begun / "checkpoints" / "epoch=0.ckpt", hyper_parameters={})
    cli.main(["validate", *arguments(f"--ckpt_path={old}", "--trainer.logger=false")])
    assert "checkpoint old.ckpt holds no configuration: its network could not be compared" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_resumed_is_refused(begun):
    for word in ("best", "last", "hpc"):
        assert f"got '{word}'" in refusal("fit", *arguments(f"--ckpt_path={word}"))
    assert (
        refusal("fit", *arguments("--ckpt_path=nowhere.ckpt")) == "checkpoint nowhere.ckpt does not exist (--ckpt_path)"
    )
    checkpoint = read_checkpoint(begun / "checkpoints" / "last.ckpt")
    write_checkpoint({key: value for key, value in checkpoint.items() if key != "optimizer_states"}, Path("w.ckpt"))
    assert "holds weights alone" in refusal("fit", *arguments("--ckpt_path=w.ckpt"))
    write_checkpoint({"weights": torch.zeros(1)}, Path("other.ckpt"))
    for command in ("fit", "validate"):
        assert "it is not one of a training" in refusal(command, *arguments("--ckpt_path=other.ckpt"))
    said = refusal("validate", *arguments(f"--ckpt_path={begun}", "--weights_only=false"))
    assert said.startswith("weights_only must be null or true")


def test_a_warm_start_takes_weights_and_nothing_else(begun, capsys):
    path = begun / "checkpoints" / "last.ckpt"
    weights = read_checkpoint(path)["state_dict"]
    seen = {}

    def look(trainer, module, batch, batch_idx):
        seen.update(
            copy.deepcopy(module.state_dict()), step=trainer.global_step, lr=trainer.optimizers[0].param_groups[0]["lr"]
        )
        trainer.should_stop = True

    class Look(callbacks.ParameterRouting):
        on_train_batch_start = staticmethod(look)

    callbacks.Look = Look
    Look.__module__, Look.__qualname__ = "eigenscope.callbacks", "Look"
    try:
        run = fit(
            f"--warm_start={path}",
            "--model.init_args.lr_scheduler.init_args.total_steps=496",
            f"--config={CONFIGS / 'optimizer' / 'muon.yaml'}",
            "--trainer.callbacks=eigenscope.callbacks.Look",
        )
    finally:
        del callbacks.Look
    assert all(torch.equal(seen[name], weight) for name, weight in weights.items())
    assert (seen["step"], seen["lr"]) == (0, pytest.approx(1e-3 / 25))
    assert f"Warm start from {path}: {len(weights)} of the module's {len(weights)} tensors are the checkpoint's." in (
        capsys.readouterr().out
    )
    assert Path(run.trainer.log_dir) == Path("runs/demo/version_1")
    assert yaml.safe_load(Path("runs/demo/version_1/config.yaml").read_text())["warm_start"] == str(path)


def test_a_warm_start_can_leave_parts_and_take_safetensors(begun):
    path = begun / "checkpoints" / "last.ckpt"
    weights = read_checkpoint(path)["state_dict"]
    save_file({name.replace("net.blocks", "net.layers"): weight for name, weight in weights.items()}, "w.safetensors")
    leave = "{net.head: null, net.layers: net.blocks, net.positions: null}"
    start = ["--warm_start=w.safetensors", f"--warm_start_map={leave}", "--data.init_args.image_size=24"]
    run = fit(
        *start,
        "--model.init_args.optimizer.init_args.lr=0",
        "--model.init_args.lr_scheduler=null",
    )
    now = run.model.state_dict()
    for name, weight in weights.items():
        left = name.startswith(("net.head.", "net.positions"))
        assert (now[name].shape == weight.shape and torch.equal(now[name], weight)) == (not left), name


def test_a_warm_started_run_resumes_and_evaluates_with_its_saved_configuration(begun, capsys):
    path = begun / "checkpoints" / "last.ckpt"
    fit(f"--warm_start={path}")
    folder = Path("runs/demo/version_1")
    given = ["--config", str(folder / "config.yaml")]
    assert "Warm start" in capsys.readouterr().out
    run = cli.main(["fit", *given, f"--ckpt_path={folder}", "--trainer.max_epochs=2"])
    assert (run.trainer.global_step, Path(run.trainer.log_dir)) == (8, folder)
    assert fit(f"--ckpt_path={folder}", epochs=2).trainer.global_step == 8
    assert fit(f"--ckpt_path={folder}", epochs=3).trainer.global_step == 12  # without a word of the warm start
    assert fit(f"--ckpt_path={folder}", f"--warm_start={path}", epochs=4).trainer.global_step == 16
    cli.main(["validate", *given, f"--ckpt_path={folder}", "--trainer.logger=false"])
    assert "Warm start" not in capsys.readouterr().out
    cli.main(["validate", *given])
    assert "Warm start from" in capsys.readouterr().out


def test_other_data_than_the_checkpoints_are_told(begun, capsys):
    path = begun / "checkpoints" / "epoch=0.ckpt"
    fit(f"--ckpt_path={path}", epochs=2)
    assert "data are not those" not in capsys.readouterr().out
    checkpoint = read_checkpoint(path)
    now = checkpoint["data"]["train"]
    checkpoint["data"]["train"] = "0123456789ab (100 samples)"
    write_checkpoint(checkpoint, path)
    fit(f"--ckpt_path={path}", epochs=2)
    there = "The train data are not those of the checkpoint: 0123456789ab (100 samples) there"
    assert f"{there}, {now} now." in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_few_batches_over_and_over(begun):
    assert fit("--trainer.overfit_batches=2", epochs=2).trainer.global_step == 4


def test_a_warm_start_that_does_not_fit_is_refused_before_training(begun):
    path = begun / "checkpoints" / "last.ckpt"
    said = refusal("fit", *arguments(f"--warm_start={path}", f"{NET}.depth=3", "--data.init_args.image_size=24"))
    assert "  missing from the checkpoint: net.blocks.2.attention.qkv.weight" in said.splitlines()
    assert (
        "  of another shape: net.positions is (1, 65, 16) in the checkpoint, (1, 37, 16) in the module"
        in said.splitlines()
    )
    said = refusal("fit", *arguments(f"--warm_start={path}", "--warm_start_map={net.haed: null}"))
    assert "'net.haed'" in said
    assert said.endswith("did you mean net.head?")
    said = refusal("fit", *arguments(f"--warm_start={path}", f"--ckpt_path={path}"))
    assert said.startswith("ckpt_path and warm_start exclude each other")
    for more in ([], [f"--ckpt_path={path}"]):
        said = refusal("fit", *arguments("--warm_start_map={net.head: null}", *more))
        assert "of which there is none" in said
    assert [folder.name for folder in begun.parent.iterdir()] == ["version_0"]


class Touch:
    def __reduce__(self):
        return (open, ("touched", "w"))


@pytest.mark.parametrize("place", ["beside", "in the weights"])
def test_no_checkpoint_executes_code(begun, place):
    checkpoint = read_checkpoint(begun / "checkpoints" / "last.ckpt")
    (checkpoint if place == "beside" else checkpoint["state_dict"])["evil"] = Touch()
    torch.save(checkpoint, "evil.ckpt")
    for command, option in (("fit", "ckpt_path"), ("validate", "ckpt_path"), ("fit", "warm_start")):
        said = refusal(command, *arguments(f"--{option}=evil.ckpt"))
        assert re.match(r"checkpoint evil\.ckpt holds more than plain values and tensors", said)
    run = fit(
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.callbacks=null",
        "--trainer.max_steps=1",
    )
    with pytest.raises(ValueError, match="holds more than plain values and tensors"):
        run.trainer.validate(run.model, run.datamodule, ckpt_path="evil.ckpt", weights_only=False)
    assert not Path("touched").exists()
