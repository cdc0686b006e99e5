import contextlib
import copy
import json
import os
import pickle
import re
import shlex
import signal
import sys
import threading
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eigenscope import cli
from eigenscope.cli import lightning_cli, planned_run
from eigenscope.cli.planned_run import PlannedRun
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.results import RunMetadata, read_scoreboard
from tests import forks

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = str(CONFIGS / "demo.yaml")
SVAE = str(CONFIGS / "svae_noise_small.yaml")
NET = "--model.init_args.net.init_args"


def small(tmp_path, *more, epochs=2):
    """Arguments that make the demo tiny and keep what it writes below tmp_path."""
    return [
        f"{NET}.width=16",
        f"{NET}.depth=2",
        f"{NET}.num_heads=2",
        "--data.init_args.train_size=200",
        "--data.init_args.test_size=100",
        "--data.init_args.batch_size=50",
        "--data.init_args.num_workers=0",
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={epochs}",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={tmp_path}",
        *more,
    ]


def fit(tmp_path, *more, config=DEMO, epochs=2):
    place = ["--trainer.logger.init_args.save_dir", str(tmp_path / "runs")]
    return cli.main(["fit", "--config", config, *small(tmp_path, *place, *more, epochs=epochs)])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_fit_leaves_logs_a_table_a_result_and_a_board(tmp_path, capsys):
    run = fit(tmp_path)
    printed = capsys.readouterr().out
    log_dir = Path(run.trainer.log_dir)
    assert log_dir == tmp_path / "runs" / "demo" / "version_0"
    result = RunMetadata.load(log_dir).result
    assert [row.epoch for row in result.epochs] == [1, 2]
    assert result.seed == 0
    assert result.parameters == sum(p.numel() for p in run.model.parameters())
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if "train acc %" in line)
    for line, row in zip(lines[start + 1 : start + 3], result.epochs, strict=True):
        cells, train, val = line.split(), row.metrics["train/acc"], row.metrics["val/acc"]
        assert cells[:3] == [str(row.epoch), f"{100 * train:.2f}", f"{100 * val:.2f}"]
        assert cells[4] == f"{100 * (train - val):+.2f}"
        assert row.metrics["val/gap"] == pytest.approx(train - val, abs=1e-6)
    assert cells[5:7] == [f"{100 * result.best[0]:.2f}", str(result.best[1])]
    assert (result.protocol, result.precision, result.test) == ("test", "32-true", {})
    assert "Scoreboard (runs/scoreboard.csv)" in printed
    (row,) = read_scoreboard(tmp_path / "runs" / "scoreboard.csv")
    assert row["name"] == "demo"
    assert row["log_dir"] == str(log_dir)
    events = EventAccumulator(str(log_dir)).Reload()
    tags = {f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "acc", "acc5")}
    assert tags | {"val/gap", "train/loss_step", "lr-AdamW"} <= set(events.Tags()["scalars"])
    logged = [event.value for event in events.Scalars("val/acc")]
    assert logged == pytest.approx([row.metrics["val/acc"] for row in result.epochs])
    assert "💡" not in printed


def test_the_same_seed_gives_the_same_run(tmp_path):
    first, second = fit(tmp_path), fit(tmp_path)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    other = fit(tmp_path, "--seed_everything=1")
    assert not torch.equal(first.model.net.positions, other.model.net.positions)


def test_classes_and_image_size_flow_from_the_data(tmp_path):
    run = fit(tmp_path, "--data.init_args.image_size=24", epochs=1)
    assert (run.model.net.image_size, run.model.net.num_classes) == (24, 100)
    assert run.model.net.positions.shape == (1, 37, 16)
    assert run.model.hparams["net"]["init_args"]["image_size"] == 24


def test_a_checkpoint_rebuilds_its_model_and_evaluates_the_same(tmp_path, capsys):
    run = fit(tmp_path, f"{NET}.taps.layers=[1,2]", config=str(CONFIGS / "demo_svd.yaml"))
    best = Path(run.trainer.checkpoint_callback.best_model_path)
    assert best.name == "best.ckpt"
    assert set(torch.load(best, weights_only=True)) >= {"state_dict", "hyper_parameters"}
    loaded = ImageClassificationModule.load_from_checkpoint(best, weights_only=True)
    assert loaded.net.taps.config.layers == (1, 2)
    assert pickle.loads(pickle.dumps(loaded)).hparams == copy.deepcopy(loaded).hparams == loaded.hparams
    config = str(Path(run.trainer.log_dir) / "config.yaml")
    evaluated = cli.main(["test", "--config", config, "--ckpt_path", str(best)])
    accuracy = float(evaluated.trainer.callback_metrics["test/acc"])
    assert accuracy == pytest.approx(RunMetadata.load(Path(run.trainer.log_dir)).result.best[0])
    assert not (tmp_path / "config.yaml").exists()


def test_a_resumed_run_keeps_its_table(tmp_path, capsys):
    length = "--model.init_args.lr_scheduler.init_args.total_steps=12"  # of the whole run, of which one is a part
    whole = fit(tmp_path, length, epochs=3)
    part = fit(tmp_path, length, epochs=2)
    last = Path(part.trainer.log_dir) / "checkpoints" / "last.ckpt"
    resumed = fit(tmp_path, length, "--ckpt_path", str(last), epochs=3)
    assert resumed.trainer.log_dir == part.trainer.log_dir
    results = [RunMetadata.load(Path(run.trainer.log_dir)).result for run in (whole, resumed)]
    assert [row.epoch for row in results[1].epochs] == [1, 2, 3]
    for one, other in zip(*(result.epochs for result in results), strict=True):
        assert one.metrics["val/acc"] == other.metrics["val/acc"]


def test_holdout_chooses_the_epoch_and_reads_the_test_set_once(tmp_path):
    fit(tmp_path, "--data.init_args.protocol=holdout", "--data.init_args.holdout_fraction=0.5")
    log_dir = tmp_path / "runs" / "demo" / "version_0"
    result = RunMetadata.load(log_dir).result
    best = str(log_dir / "checkpoints" / "best.ckpt")
    tested = cli.main(["test", "--config", str(log_dir / "config.yaml"), "--ckpt_path", best, "--trainer.logger=false"])
    assert result.protocol == "holdout"
    for name in ("loss", "acc", "acc5"):
        figure = float(tested.trainer.callback_metrics[f"test/{name}"])
        assert result.test[f"test/{name}"] == pytest.approx(figure, rel=1e-5)
    (row,) = read_scoreboard(tmp_path / "runs" / "scoreboard.csv")
    assert float(row["test"]) == pytest.approx(result.test_score)


def test_epochs_without_validation_have_no_validation_figures(tmp_path):
    fit(tmp_path, "--trainer.check_val_every_n_epoch=2", epochs=3)
    result = RunMetadata.load(tmp_path / "runs" / "demo" / "version_0").result
    assert ["val/acc" in row.metrics for row in result.epochs] == [False, True, False]
    assert ["val/gap" in row.metrics for row in result.epochs] == [False, True, False]


def test_a_schedule_shorter_than_the_run_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"OneCycleLR has 2 steps, but the run takes 8 \(lr_interval is 'step'\)"):
        fit(tmp_path, *(f"--model.init_args.lr_scheduler.init_args.{x}" for x in ("epochs=1", "steps_per_epoch=2")))
    assert not (tmp_path / "runs" / "scoreboard.csv").exists()


def test_a_fast_dev_run_leaves_no_result(tmp_path):
    run = fit(tmp_path, "--trainer.fast_dev_run=true")
    assert run.trainer.global_step == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("asked", "has_bf16", "used", "reason"),
    [
        ("bf16", False, "32-true", "bf16-mixed was asked for, but this cpu only emulates it"),
        ("16-mixed", True, "bf16-mixed", "16-mixed was asked for, but a CPU has no mixed precision in fp16"),
    ],
)
def test_a_precision_that_the_device_has_not_is_replaced_aloud(
    asked, has_bf16, used, reason, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(lightning_cli, "has_bf16", lambda device: has_bf16)
    run = fit(tmp_path, f"--trainer.precision={asked}", epochs=1)
    assert run.trainer.precision == used
    assert f"{reason}: using {used}." in capsys.readouterr().out
    saved = yaml.safe_load((Path(run.trainer.log_dir) / "config.yaml").read_text())
    assert saved["trainer"]["precision"] == used


def test_an_error_keeps_the_words_of_the_class_that_found_it(tmp_path, make_tree):
    root = make_tree()
    image = root / "train" / "class00" / "000.png"
    image.write_bytes(b"not an image")
    data = ["--data=CIFAR100DataModule", "--data.init_args.source=folder", f"--data.init_args.root={root}"]
    with pytest.raises(lightning_cli.ConfigurationError, match=f"^{re.escape(str(image))} is not a readable image"):
        cli.main(["fit", "--config", DEMO, *data])


def test_a_refused_value_is_one_sentence_at_the_command_line(tmp_path):
    command, printed = ["eigenscope", "fit", "--config", DEMO, f"{NET}.patch_size=5"], tmp_path / "printed"
    assert forks.wait([forks.start(command, tmp_path, printed, {})], 60) == [1]
    assert printed.read_text().splitlines()[-1] == (
        "error: patch_size must divide image_size 32, got 5 (--model.init_args.net.init_args.patch_size)"
    )
    assert "Traceback" not in printed.read_text()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (f"{NET}.patch_size=5", "patch_size must divide image_size 32, got 5"),
        (f"{NET}.taps.layers=[9]", "taps.layers must lie within 1 to 2"),
        ("--data.init_args.protocol=train", "protocol"),
        ("--data.init_args.batch_size=500", "batch_size must be at most 200"),
    ],
)
def test_bad_values_end_before_training(tmp_path, capsys, argument, message):
    with pytest.raises((ValueError, SystemExit)) as error:
        fit(tmp_path, argument)
    assert message in str(error.value) + capsys.readouterr().err
    assert not (tmp_path / "runs" / "demo" / "version_0" / "checkpoints").exists()


def compare(tmp_path, *more, arms=(DEMO, str(CONFIGS / "demo_svd.yaml"))):
    configs = [part for arm in arms for part in ("--config", arm)]
    taps = [f"{NET}.depth=4"] if len(arms) > 1 else []  # demo_svd taps layer 4
    return cli.main(["compare", *configs, "--dir", str(tmp_path / "study"), *small(tmp_path, epochs=1), *taps, *more])


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs of ``compare`` without processes of their own, which other tests have; the command lines they would get."""
    commands = []

    def run(command, is_ready):
        commands.append(command)
        assert command[:3] == [sys.executable, "-m", "eigenscope"]
        cli.main(command[3:])
        return 0, None

    monkeypatch.setattr(planned_run, "run_child", run)
    return commands


def test_compare_trains_each_arm_and_seed_once_in_turns(tmp_path, capfd, in_this_process):
    base, taps = compare(tmp_path, "--seeds", "0", "1")
    first, before = capfd.readouterr()
    results = {
        (arm, seed): RunMetadata.load(next((tmp_path / "study" / arm).glob(f"seed{seed}-*/"))).result
        for arm in ("demo", "demo_svd")
        for seed in (0, 1)
    }
    assert {result.seed for result in results.values()} == {0, 1}
    mean = sum(results["demo_svd", seed].best[0] - results["demo", seed].best[0] for seed in (0, 1)) / 2
    assert taps.best.difference.mean == pytest.approx(100 * mean)
    assert taps.parameters > base.parameters
    turns = ["demo seed 0", "demo_svd seed 0", "demo_svd seed 1", "demo seed 1"]
    assert re.findall(r"^\[\d/4\] (.*?)(?:, about .* left)?$", first, re.MULTILINE) == turns
    assert len(re.findall(" left$", first, re.MULTILINE)) == 3 + 4  # and the heads of the epoch tables
    for word in ("Head-to-head", "demo_svd − demo", "Scoreboard (runs/scoreboard.csv), the rows of these runs"):
        assert word in first
    assert re.search(r"^layers +– +\[2, 3, 4\]$", first, re.MULTILINE)  # in what the arms differ
    assert f"in this order: {', '.join(turns)}." in first
    assert "did not take turns" not in first
    assert "Warning" not in first.replace("Warning: other processes", "") + before
    saved = json.loads((tmp_path / "study" / "demo-vs-demo_svd.json").read_text())
    assert saved["arms"][1]["best"]["difference"]["mean"] == taps.best.difference.mean
    assert (tmp_path / "study" / "demo-vs-demo_svd.txt").read_text().strip() in first
    board = read_scoreboard(tmp_path / "runs" / "scoreboard.csv")
    assert {row["label"].partition("; ")[0] for row in board} == {"width=16"}

    assert len(in_this_process) == 4
    assert compare(tmp_path, "--seeds", "0", "1") == [base, taps]
    assert capfd.readouterr().out.count("already finished") == 4
    assert len(in_this_process) == 4

    (record,) = (tmp_path / "study" / "demo_svd").glob("seed1-*/run.json")
    content = json.loads(record.read_text())
    content["card"]["versions"]["torch"] = "another"
    content["result"] |= {"validated": "1 of 2 batches of 50", "others": 1.25, "busy": True}
    record.write_text(json.dumps(content))
    compare(tmp_path, "--seeds", "0", "1")
    printed = capfd.readouterr().out
    rest = "demo seed 0, demo_svd seed 0, demo seed 1"
    for warning in (
        f"same torch: {torch.__version__} ({rest}); another (demo_svd seed 1)",
        f"on the same part of the validation set: all of it ({rest}); 1 of 2 batches of 50 (demo_svd seed 1)",
        "demo_svd seed 1 (1.2 cores)",
    ):
        assert warning in printed
        assert warning in (tmp_path / "study" / "demo-vs-demo_svd.txt").read_text()
    assert "Warning: other processes kept the machine busy during " in printed


def test_compare_trains_again_what_changed_or_did_not_finish(tmp_path, capfd, in_this_process):
    compare(tmp_path, arms=(DEMO,))
    assert "One seed gives no standard deviation and no interval" in capfd.readouterr().out
    (result,) = (tmp_path / "study" / "demo").glob("*/run.json")
    result.unlink()
    (result.parent / "half").write_text("left behind")
    compare(tmp_path, arms=(DEMO,))
    assert result.exists()
    assert not (result.parent / "half").exists()
    assert (result.parent.with_name(f"{result.parent.name}-unfinished0") / "half").exists()
    capfd.readouterr()
    compare(tmp_path, "--data.init_args.seed=1", arms=(DEMO,))
    assert "already finished" not in capfd.readouterr().out
    assert len(list((tmp_path / "study" / "demo").glob("*/run.json"))) == 2


def test_compare_tells_arms_of_one_name_apart_and_says_what_does_not_compare(tmp_path, capfd, in_this_process):
    layer, other = tmp_path / "smooth.yaml", tmp_path / "mine" / "smooth.yaml"
    other.parent.mkdir()
    layer.write_text("model: {init_args: {label_smoothing: 0.1}}\n")
    other.write_text("model: {init_args: {label_smoothing: 0.1}}\ndata: {init_args: {seed: 7}}\n")
    args = ["--dir", "study", *small(tmp_path, epochs=1)]
    arms = cli.main(["compare", "--config", DEMO, str(layer), "--config", DEMO, str(other), *args])
    printed, before = capfd.readouterr()
    names = [f"demo+{tmp_path.name}-smooth", "demo+mine-smooth"]
    assert [arm.name for arm in arms] == names
    asked = yaml.safe_load(next((tmp_path / "study" / names[0]).glob("*.yaml")).read_text())
    assert asked["model"]["init_args"]["label_smoothing"] == 0.1
    apart = f"not of the same images: they differ in data.seed ({names[0]} 0, {names[1]} 7)"
    assert apart in before
    assert apart in printed
    assert "Warning: these runs were not made with the same data" in printed
    assert printed.partition("Scoreboard (")[2].count("protocol test") == 2  # two boards


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", DEMO, "--config", DEMO], "is given twice; every arm needs files of another name"),
        (["--config", DEMO, "--seeds", "0", "-1"], "--seeds: a seed must be from 0 to 4294967295, got -1"),
        (["--config", DEMO, "--seed", "1"], "error: compare: --seed is unknown; did you mean --seeds?"),
        (["--config", DEMO, "--ckpt_path=x"], "compare trains every run from its beginning"),
        (
            ["--config", DEMO, "--config", SVAE],
            "one score, the monitor of their Scoreboard, got demo by max val/acc; svae_",
        ),
        (["--config", DEMO, "--seeds", "1", "1"], "every seed once"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", DEMO, "--trainer.max_epoch", "3"], "max_epoch"),
        (["--config", DEMO, "--seed_everything=5"], "give the seeds with --seeds"),
        (["--config", DEMO, "--trainer.logger", "false"], "arm demo: trainer.logger must be one TensorBoardLogger"),
        (["--config", DEMO, "--trainer.callbacks", "EpochTable"], "arm demo: trainer.callbacks must hold one Scoreb"),
        (["--config", DEMO, "--trainer.fast_dev_run", "true"], "arm demo: trainer.fast_dev_run leaves no result"),
        ([], "--config"),
    ],
)
def test_compare_refuses_bad_arguments_before_training(tmp_path, capfd, args, message):
    with pytest.raises(SystemExit):
        cli.main(["compare", *args])
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_compare_stops_at_a_run_that_fails_and_says_how_to_repeat_it(tmp_path, capfd):
    with pytest.raises(
        SystemExit, match=r"demo seed 0 failed with exit code 1.*-m eigenscope fit --config \S*\.yaml --trainer"
    ):
        compare(tmp_path, f"{NET}.patch_size=5", arms=(DEMO,))
    assert "patch_size must divide" in capfd.readouterr().err


@contextlib.contextmanager
def sent_when(condition, signum, lock=None):
    """Sends this process a signal, from a thread that may hold a lock, once something is so."""
    held, over = threading.Event(), threading.Event()

    def watch():
        with lock or contextlib.nullcontext():
            held.set()
            while not over.wait(0.01):
                if condition():
                    os.kill(os.getpid(), signum)
                    return over.wait()

    thread = threading.Thread(target=watch)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


SLOW = """
import time
from pathlib import Path
from lightning import Callback

class Slow(Callback):
    def on_train_batch_end(self, *_):
        Path("fast").exists() or time.sleep(0.2)
"""


def test_compare_hands_on_a_signal_and_says_how_its_run_goes_on(tmp_path, monkeypatch, capfd):
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    args = ["--trainer.max_epochs=15", "--trainer.callbacks+=slow.Slow"]
    saved = "study/demo/*/checkpoints/last.ckpt"
    with sent_when(lambda: list(tmp_path.glob(saved)), signal.SIGINT), pytest.raises(SystemExit) as end:
        compare(tmp_path, *args, arms=(DEMO,))
    assert end.value.code == 128 + signal.SIGINT
    (last,) = tmp_path.glob(saved)
    record = RunMetadata.load(last.parents[1])
    step = int(re.fullmatch(r"TrainingInterrupted SIGINT ended the run after step (\d+); .*", record.reason)[1])
    assert 0 < step < 15 * 4
    *_, said = capfd.readouterr().err.splitlines()
    sentence, _, command = said.partition(" to its end: ")
    assert sentence == (
        "SIGINT ended compare and demo seed 0; finished runs are kept, and given again compare trains this one anew, "
        "or takes its result if it is first resumed"
    )

    (tmp_path / "fast").touch()
    interpreter, flag, module, *args_of_fit = shlex.split(command)
    assert [interpreter, flag, module, *args_of_fit[-2:]] == [
        sys.executable,
        "-m",
        "eigenscope",
        "--ckpt_path",
        str(last),
    ]
    assert cli.main(args_of_fit).trainer.global_step == 15 * 4
    capfd.readouterr()
    compare(tmp_path, *args, arms=(DEMO,))
    assert "already finished" in capfd.readouterr().out
    assert [path.name for path in last.parents[2].glob("*unfinished*")] == []


def planned(tmp_path):
    """The run that ``compare`` would train."""
    config = cli.resolve(["--config", DEMO, *small(tmp_path, epochs=1)])
    run = PlannedRun.plan("demo", 0, config, tmp_path / "study")
    run.folder.mkdir(parents=True)
    return run


def test_compare_says_which_record_is_damaged(tmp_path):
    record = planned(tmp_path).folder / "run.json"
    record.write_text('{"outcome": "fini')
    with pytest.raises(SystemExit, match=f"error: {record} is not run metadata: .*; move it away to begin"):
        compare(tmp_path, arms=(DEMO,))


def test_compare_that_waits_for_another_ends_without_a_traceback(tmp_path, capfd):
    run = planned(tmp_path)

    def waits():
        frames = traceback.walk_stack(sys._current_frames()[threading.main_thread().ident])
        return {"train", "acquire"} <= {frame.f_code.co_name for frame, _ in frames}

    lock = FileLock(run.folder.with_name(f".{run.folder.name}.lock"))
    with sent_when(waits, signal.SIGINT, lock), pytest.raises(SystemExit) as end:
        compare(tmp_path, arms=(DEMO,))
    assert end.value.code == 128 + signal.SIGINT
    assert capfd.readouterr().err.splitlines() == ["SIGINT ended compare; finished runs are kept"]


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_compare_is_not_for_torchrun(tmp_path, monkeypatch, capfd, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(SystemExit):
        compare(tmp_path, arms=(DEMO,))
    assert "not under torchrun" in capfd.readouterr().err


def test_compare_helps_as_much_as_fit(capsys):
    for args, words in (
        (["--help"], ["--seeds SEED", "examples:", "DIR/A-vs-B.txt", "--trainer.max_epochs MAX_EPOCHS", "--data.help"]),
        (["--model.help", "ImageClassificationModule"], ["--model.label_smoothing"]),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["compare", *args])
        printed = capsys.readouterr().out
        assert end.value.code == 0
        assert not [word for word in words if word not in printed]


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for word in ("fit", "validate", "test", "predict", "compare"):
        assert word in printed
