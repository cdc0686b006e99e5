"""What may differ from a checkpoint: callbacks that do not affect training, and what --resume_allow permits."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eigenscope import cli
from eigenscope.checkpoints import read_checkpoint
from eigenscope.cli import lightning_cli

ROOT = Path(__file__).parents[1]
RUN = Path("runs/demo/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
OPTIMIZER, SCHEDULE = "model.init_args.optimizer.init_args", "model.init_args.lr_scheduler"
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 12, "eta_min": 1e-4}}
PLATEAU = {
    "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
    "init_args": {"monitor": "val/loss", "threshold": 0.9, "factor": 0.5, "patience": 0},
}
EARLY = "EarlyStopping", "--trainer.callbacks.monitor=val/loss"
OWN = """
from lightning.pytorch import Callback
from eigenscope.callbacks import EpochTable

class Hello(Callback):
    def on_train_start(self, trainer, pl_module):
        print("hello at step", trainer.global_step)

    def state_dict(self):
        return {"said": 1}

class Doubler(Hello):
    affects_training = True

class Table(EpochTable):
    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        print("my table")
"""


def arguments(*more, epochs=2, schedule=COSINE, interval="step"):
    net = "--model.init_args.net.init_args"
    given = [] if schedule == "demo" else [f"--{SCHEDULE}={json.dumps(schedule)}"]
    return [
        "fit",
        f"--config={ROOT / 'configs' / 'demo.yaml'}",
        *(f"{net}.width=16", f"{net}.depth=1", f"{net}.num_heads=2", *given),
        f"--model.init_args.lr_interval={interval}",
        *(f"--data.init_args.{option}" for option in ("train_size=100", "test_size=50", "batch_size=25")),
        *("--data.init_args.num_workers=0", "--trainer.accelerator=cpu", f"--trainer.max_epochs={epochs}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--trainer.log_every_n_steps=1", *more),
    ]


def fit(*more, **options):
    return cli.main(arguments(*more, **options))


def resume(*more, allow=(), **options):
    allowed = [f"--resume_allow={key}" for key in allow]
    return fit(*more, *allowed, f"--ckpt_path={RUN}", **{"epochs": 3} | options)


def refusal(*more, **options):
    with pytest.raises(lightning_cli.ConfigurationError) as error:
        resume(*more, **options)
    return str(error.value)


def rates(run):
    """The learning rate of every step of a run and of its resumes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(run.trainer.log_dir).Reload()
    return [event.value for event in events.Scalars("lr-AdamW")]


def group(run):
    return run.trainer.optimizers[0].param_groups[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two epochs, eight steps, for each schedule."""
    folder = tmp_path_factory.mktemp("begun")
    here = Path.cwd()
    try:
        for name, options in {
            "cosine": {},
            "none": {"schedule": None},
            "demo": {"schedule": "demo"},
            "plateau": {"schedule": PLATEAU, "interval": "epoch"},
        }.items():
            (folder / name).mkdir()
            os.chdir(folder / name)
            fit(**options)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def begun(runs, tmp_path, monkeypatch):
    """Copies a run below the working directory, where there is a file with a user's own callbacks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_callbacks", raising=False)
    (tmp_path / "own_callbacks.py").write_text(OWN)

    def begin(name="cosine"):
        shutil.copytree(runs / name / "runs", tmp_path / "runs")

    return begin


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["own_callbacks.Hello"], "Hello added (its class does not state affects_training)"),
        (["own_callbacks.Table"], "Table added"),
        pytest.param(EARLY, "EarlyStopping added (its class does not state affects_training)", marks=pytest.mark.long),
    ],
    ids=["own", "subclass", "EarlyStopping"],
)
def test_a_callback_comes_and_goes_and_is_named_in_one_line(begun, capsys, recwarn, given, said):
    begun()
    callback, *options = given
    assert resume(f"--trainer.callbacks+={callback}", *options).trainer.global_step == 12
    out = capsys.readouterr().out
    assert f"Callbacks differ from the checkpoint's: {said}.\n" in out
    assert ("hello at step 8" in out, "my table" in out) == ("Hello" in callback, "Table" in callback)
    assert resume(epochs=4).trainer.global_step == 16
    out = capsys.readouterr().out
    assert f"Callbacks differ from the checkpoint's: {said.split()[0]} removed.\n" in out
    assert "differ" not in out.replace("Callbacks differ from", "", 1)
    assert not [warning for warning in recwarn if "callbacks used to create" in str(warning.message)]
    resume(epochs=4)
    assert "differ" not in capsys.readouterr().out


def test_a_run_that_early_stopping_has_ended_goes_on_without_it(begun):
    fit(f"--trainer.callbacks+={EARLY[0]}", EARLY[1], "--trainer.callbacks.stopping_threshold=100")
    assert read_checkpoint(LAST)["global_step"] == 4
    assert resume().trainer.global_step == 12


def test_an_own_callback_that_affects_training_must_stay(begun, capsys):
    """In a process that has not loaded its class too: the checkpoint says that it affected the training."""
    begun()
    assert "Doubler: checkpoint absent, now own_callbacks.Doubler" in refusal(
        "--trainer.callbacks+=own_callbacks.Doubler"
    )
    shutil.rmtree("runs")
    fit("--trainer.callbacks+=own_callbacks.Doubler", epochs=1)
    Path("own_callbacks.py").unlink()
    command = [sys.executable, str(ROOT / "cli.py"), *arguments(f"--ckpt_path={RUN}")]
    env = os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "trainer.callbacks.Doubler: checkpoint own_callbacks.Doubler, now absent" in done.stderr
    capsys.readouterr()
    resume(allow=["trainer.callbacks.Doubler"])
    said = capsys.readouterr().out
    assert "Allowed by --resume_allow: trainer.callbacks.Doubler: checkpoint own_callbacks.Doubler, now" in said


def test_what_is_not_allowed_is_still_refused(begun):
    begun()
    more = ["--data.init_args.batch_size=20", "--trainer.gradient_clip_val=2", f"--{OPTIMIZER}.lr=2e-3"]
    said = refusal(*more, allow=["data", OPTIMIZER])
    _, *lines, last = said.splitlines()
    assert lines == ["  trainer.gradient_clip_val: checkpoint 1.0, now 2"]
    assert last.endswith("permit a difference on purpose with --resume_allow KEY")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.init_args.batchsize", "did you mean data.init_args.batch_size?"),
        ("model.init_arg.lr_scheduler", "did you mean model.init_args?"),
        ("lr_scheduler", "did you mean model.init_args.lr_scheduler?"),
        ("trainer.callbacks.CVLossSchedule", "there are"),
        ("", "resume_allow: there is no key"),
    ],
)
def test_an_unknown_key_names_the_nearest(begun, key, meant):
    begun()
    said = refusal(allow=[key])
    assert said.startswith("resume_allow: there is no key ")
    assert meant in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "allow", "said"),
    [
        (["--seed_everything=3"], ["seed_everything"], "random streams continue"),
        (
            [f"--config={ROOT / 'configs' / 'optimizer' / 'soap.yaml'}"],
            ["model.init_args.optimizer"],
            "the state of one optimizer is none of another's",
        ),
    ],
)
def test_what_could_not_take_effect_is_refused(begun, more, allow, said):
    begun()
    message = refusal(*more, allow=allow)
    assert message.startswith(f"resume_allow cannot permit {allow[0]}")
    assert said in message


def test_the_option_is_for_resuming_a_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, said in (("fit", "ckpt_path, which is not given"), ("validate", "resume_allow is for fit")):
        with pytest.raises(lightning_cli.ConfigurationError, match=said):
            cli.main([command, *arguments("--resume_allow=data")[1:]])


def test_what_was_allowed_is_said_and_recorded_and_then_belongs_to_the_run(begun, capsys):
    begun()
    keys = ["data.init_args.batch_size", "trainer.gradient_clip_val", "trainer.max_epochs"]
    changes = ["--data.init_args.batch_size=20", "--trainer.gradient_clip_val=2"]
    resume(*changes, allow=keys)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Allowed by --resume_allow: "))
    assert "data.init_args.batch_size: checkpoint 25, now 20" in line
    assert "trainer.gradient_clip_val: checkpoint 1.0, now 2" in line
    assert line.endswith("nothing contradicts the checkpoint at trainer.max_epochs.")
    allowed = {"data.init_args.batch_size": [25, 20], "trainer.gradient_clip_val": [1.0, 2]}
    record = json.loads((RUN / "run.json").read_text())
    assert record["card"]["start"]["allowed"] == allowed
    assert record["card"]["configuration"]["resume_allow"] is None
    assert "allowed" not in record["resumed"][0]
    assert "data.init_args.batch_size" in refusal(epochs=4)
    assert resume(*changes, epochs=4).trainer.global_step == 8 + 5 + 5
    record = json.loads((RUN / "run.json").read_text())
    assert [start.get("allowed") for start in record["resumed"]] == [None, allowed]
    assert "allowed" not in record["card"]["start"]


def cosine(step, lr, end=12, least=1e-4):
    return least + (lr - least) * (1 + math.cos(math.pi * step / end)) / 2


@pytest.mark.filterwarnings("ignore:`ModelCheckpoint:UserWarning")  # before a first validation
@pytest.mark.parametrize("save", [None, 3])
def test_a_changed_learning_rate_takes_effect_under_its_schedule(begun, capsys, save):
    """From the first resumed step on, the rate is that of a run that began with it; before, that of the old one."""
    begun()
    if save is not None:
        shutil.rmtree("runs")
        fit("--trainer.max_steps=3")
    start, end = (8 if save is None else 3), 12
    run = resume(f"--{OPTIMIZER}.lr=4e-3", "--trainer.max_steps=-1", allow=[f"{OPTIMIZER}.lr"])
    expected = [cosine(step, 1e-3) for step in range(start)] + [cosine(step, 4e-3) for step in range(start, end)]
    assert rates(run) == pytest.approx(expected, rel=1e-5)
    assert (group(run)["initial_lr"], run.trainer.lr_scheduler_configs[0].scheduler.base_lrs) == (4e-3, [4e-3])
    steps = {float(state["step"]) for state in run.trainer.optimizers[0].state.values()}
    assert steps == {end}  # the state of the optimizer is the checkpoint's
    assert "has no effect" not in capsys.readouterr().out


def test_a_changed_weight_decay_takes_effect_and_the_rest_stays(begun):
    begun()
    options = [f"--{OPTIMIZER}.weight_decay=0.5", f"--{OPTIMIZER}.betas=[0.8,0.99]"]
    run = resume(*options, allow=[OPTIMIZER])
    assert (group(run)["weight_decay"], tuple(group(run)["betas"])) == (0.5, (0.8, 0.99))
    assert rates(run) == pytest.approx([cosine(step, 1e-3) for step in range(12)], rel=1e-5)


def test_without_a_schedule_the_new_rate_holds(begun):
    begun("none")
    run = resume(f"--{OPTIMIZER}.lr=4e-3", allow=[f"{OPTIMIZER}.lr"], schedule=None)
    assert group(run)["lr"] == 4e-3


def test_a_rate_that_the_schedule_sets_is_said_to_have_no_effect_and_its_own_has(begun, capsys):
    begun("demo")
    before = group(resume(schedule="demo"))["lr"]
    shutil.copytree(RUN, "kept")
    resume(f"--{OPTIMIZER}.lr=5", allow=[f"{OPTIMIZER}.lr"], schedule="demo", epochs=4)
    assert f"{OPTIMIZER}.lr has no effect: OneCycleLR sets lr." in capsys.readouterr().out
    shutil.rmtree(RUN)
    shutil.move("kept", RUN)
    peak = f"{SCHEDULE}.init_args.max_lr"
    run = resume(f"--{peak}=2e-3", allow=[peak], schedule="demo", epochs=3)
    assert group(run)["lr"] == pytest.approx(2 * before)
    assert group(run)["max_lr"] == 2e-3


@pytest.mark.parametrize("name", ["cosine", "none"])
def test_another_schedule_goes_on_as_if_the_run_had_begun_with_it(begun, name):
    begun(name)
    step = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 5, "gamma": 0.1}}
    run = resume(allow=[SCHEDULE], schedule=step)
    assert rates(run)[-4:] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    assert resume(schedule=step, epochs=4).trainer.global_step == 16


def test_a_schedule_that_is_left_out_leaves_the_stated_rate(begun):
    begun("demo")
    run = resume(allow=[SCHEDULE], schedule=None)
    assert group(run)["lr"] == 1e-3
    assert "max_lr" not in group(run)
    assert tuple(group(run)["betas"]) == (0.9, 0.999)


def test_a_schedule_may_count_epochs_instead(begun):
    begun()
    run = resume(allow=["model.init_args.lr_interval"], interval="epoch")
    assert rates(run)[-1] == pytest.approx(cosine(2, 1e-3))


def test_a_plateau_keeps_what_it_has_counted(begun):
    """No epoch makes the loss ten times smaller: every one but the first halves the rate."""
    begun("plateau")
    options = {"schedule": PLATEAU, "interval": "epoch"}
    saved = read_checkpoint(LAST)["optimizer_states"][0]["param_groups"][0]["lr"]
    assert saved == 5e-4
    shutil.copytree(RUN, "kept")
    changed = {**PLATEAU, "init_args": {**PLATEAU["init_args"], "factor": 0.1, "min_lr": 1e-6}}
    run = resume(allow=[SCHEDULE], **options | {"schedule": changed})
    assert rates(run)[2:] == pytest.approx([5e-4])
    assert group(run)["lr"] == pytest.approx(5e-5)
    assert run.trainer.lr_scheduler_configs[0].scheduler.min_lrs == [1e-6]
    shutil.rmtree(RUN)
    shutil.move("kept", RUN)
    run = resume(f"--{OPTIMIZER}.lr=8e-3", allow=[f"{OPTIMIZER}.lr"], **options)
    assert rates(run)[2:] == pytest.approx([8e-3])
    assert group(run)["lr"] == pytest.approx(4e-3)


def test_a_rate_of_one_half_of_a_split_optimizer(begun):
    split = yaml.safe_load((ROOT / "configs" / "optimizer" / "muon.yaml").read_text())
    optimizer = split["model"]["init_args"]["optimizer"]
    optimizer["init_args"] |= {"lr": None, "weight_decay": None}
    given = f"--model.init_args.optimizer={json.dumps(optimizer)}"
    schedule = {**COSINE, "init_args": {**COSINE["init_args"], "T_max": 16}}
    fit(given, schedule=schedule)
    rate = f"{OPTIMIZER}.other.init_args.lr"
    run = resume(given, f"--{rate}=0.5", allow=[rate], schedule=schedule)
    matrix, other = run.trainer.optimizers[0].param_groups
    assert matrix["initial_lr"] < other["initial_lr"] == 0.5
    for each in (matrix, other):
        assert each["lr"] == pytest.approx(cosine(12, each["initial_lr"], end=16))


def test_a_net_of_another_depth_is_refused_by_its_weights(begun):
    begun()
    said = refusal("--model.init_args.net.init_args.depth=2", allow=["model.init_args.net"])
    assert said.splitlines()[0] == f"the weights of checkpoint {LAST} do not fit the model:"
    assert "  missing from the checkpoint: net.blocks.1.attention.qkv.weight" in said.splitlines()
    assert resume("--model.init_args.net.init_args.dropout=0.2", allow=["model"]).trainer.global_step == 12
