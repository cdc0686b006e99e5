"""A run that was stopped and resumed ends bit for bit as one that was not."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from eigenscope import cli
from eigenscope.callbacks import NonFiniteError, ResumeCheckpoint, TrainingInterrupted
from eigenscope.checkpoints import read_checkpoint
from eigenscope.cli import lightning_cli
from eigenscope.nn import BatteryArray, BatteryEntry, save_batteries
from tests.matrix.covering import BASES, every_class, one_of_each_kind

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = one_of_each_kind(BASES)
BATCHES = 3
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    f"--trainer.limit_train_batches={BATCHES}",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
]
SMALLER = {"HeavyTailedNoiseDataModule": ["--data.init_args.image_size=32"]}
HAVE_SIZES = ("batteries", "batteries_small")
# of the clock, or what a start is told of itself; Lightning's ModelCheckpoint forgets current_score
OWN = (
    "seconds",
    "elapsed",
    "saved_at",
    "RunMetadataCallback",
    "configuration.ckpt_path",
    "configuration.trainer.logger",
)
OWN += (".current_score",)
FOLDERS = re.compile(r"(?<![^/])(whole|stopped|killed|done)/")

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class StopAfter(Callback):
    """Sends this process a signal at the end of a step, as somebody else would."""

    def __init__(self, step, signum):
        self.step, self.signum = step, signum

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


class SpoilAt(Callback):
    """Makes the gradients of a batch infinite, once."""

    def __init__(self, batch):
        self.batch, self.seen = batch, 0

    def on_after_backward(self, trainer, pl_module):
        self.seen += 1
        if self.seen == self.batch:
            next(p.grad for p in pl_module.parameters() if p.grad is not None).fill_(float("inf"))


@pytest.fixture
def fit(tmp_path, monkeypatch, make_tree):
    """Fits in a folder below tmp_path; ``stop`` is the step after which a signal comes, ``spoil`` a batch."""

    def run(folder, config, *more, stop=None, signum=signal.SIGTERM, spoil=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        args = ["fit", "--config", str(config), *SMALL]
        data = yaml.safe_load(config.read_text())["data"]["class_path"]
        if data != "GradientSpikeDataModule":
            args += ["--data.init_args.batch_size=4", "--data.init_args.num_workers=0"]
        if data == "CIFAR100DataModule":
            root = tmp_path / "tree"
            root = root if root.exists() else make_tree(classes=5, train=20)
            args += ["--data.init_args.source=folder", f"--data.init_args.root={root}"]
        elif data == "SyntheticImagesDataModule":
            args += ["--data.init_args.train_size=100", "--data.init_args.test_size=100"]
        args += SMALLER.get(data, []) if config.parent.name != "spike" and config.stem not in HAVE_SIZES else []
        text = config.read_text()
        if config.stem.startswith("deit"):
            args += ["--model.init_args.net.init_args.width=96"]
        elif "hidden: " in text and config.stem not in HAVE_SIZES:
            args += [f"--model.init_args.net.init_args.hidden={96 if 'decoder' in text else 32}"]
        if config.stem == "vae_implanted":
            entries = [BatteryEntry((k,), 5, {}) for k in range(2)]
            if not Path("batteries.safetensors").exists():
                torch.manual_seed(5)
                save_batteries(Path("batteries.safetensors"), BatteryArray(2, hidden=8), entries)
            args += ["--model.init_args.net.init_args.container=batteries.safetensors"]
        make = lightning_cli.EigenscopeCLI.instantiate_trainer

        def with_stop(self, **options):
            trainer = make(self, **options)
            trainer.callbacks[:0] = [StopAfter(stop, signum)] if stop is not None else []
            trainer.callbacks[:0] = [SpoilAt(spoil)] if spoil is not None else []
            return trainer

        with monkeypatch.context() as patch:
            patch.setattr(lightning_cli.EigenscopeCLI, "instantiate_trainer", with_stop)
            if spoil is not None:
                with pytest.raises(NonFiniteError):
                    cli.main([*args, *more])
                (checkpoint,) = Path("runs").glob("*/version_0/checkpoints/last_good.ckpt")
                return checkpoint.resolve()
            if stop is None or signal.getsignal(signum) is signal.SIG_IGN:
                cli.main([*args, *more])
            else:
                with pytest.raises(
                    TrainingInterrupted, match=f"{signal.Signals(signum).name} ended the run after step"
                ):
                    cli.main([*args, *more])
        (checkpoint,) = Path("runs").glob("*/version_0/checkpoints/last.ckpt")
        return checkpoint.resolve()

    return run


def differences(a, b, path=""):
    if any(word in path for word in OWN):
        return []
    if isinstance(a, str) and isinstance(b, str):
        a, b = (FOLDERS.sub("", text) for text in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = ({FOLDERS.sub("", str(key)): value for key, value in tree.items()} for tree in (a, b))
        missing = [f"{path}.{key} only once" for key in a.keys() ^ b.keys()]
        return missing + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)}"]
        return [line for n, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{path}[{n}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        return [] if same else [f"{path}: tensors"]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a!r} and {b!r}"]


def assert_equal_ends(whole, resumed):
    found = differences(read_checkpoint(whole), read_checkpoint(resumed))
    assert found == [], found[:10]


def stop_and_resume(fit, config, steps, *more, signum=signal.SIGTERM):
    """Stops a run after each of the steps, and resumes it each time."""
    whole, resume = fit("whole", config, *more), []
    for step in steps:
        stopped = fit("stopped", config, *more, *resume, stop=step, signum=signum)
        assert read_checkpoint(stopped)["global_step"] == step
        resume = ["--ckpt_path", str(stopped)]
    resumed = fit("stopped", config, *more, *resume)
    assert resumed == stopped
    assert_equal_ends(whole, resumed)
    return read_checkpoint(resumed)


def long_unless(short, known):
    return [pytest.param(each, marks=() if each in short else pytest.mark.long) for each in known]


@pytest.mark.parametrize("experiment", long_unless(every_class(KINDS), KINDS))
def test_every_kind_of_experiment_within_an_epoch(fit, experiment):
    config = CONFIGS / f"{experiment}.yaml"
    if config.parent.name == "spike":
        options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=54"]
        assert stop_and_resume(fit, config, [51], *options)["global_step"] == 54
    else:
        assert stop_and_resume(fit, config, [BATCHES + 1])["global_step"] == 2 * BATCHES


@pytest.mark.parametrize(
    "experiment", long_unless(["demo_svd"], ["demo_svd", "svae_noise_small", "recall", "vae_plain"])
)
def test_soap_at_the_end_of_an_epoch_and_within(fit, experiment):
    config, soap = CONFIGS / f"{experiment}.yaml", str(CONFIGS / "optimizer" / "soap.yaml")
    end = stop_and_resume(fit, config, [BATCHES, BATCHES + 2], "--config", soap)
    assert any("L" in state for state in end["optimizer_states"][0]["state"].values())


@pytest.mark.parametrize(
    "options",
    [
        [
            *("--model.init_args.net.init_args.dropout=0.2", "--data.init_args.augmentation=recipe"),
            *("--trainer.val_check_interval=2", "--trainer.limit_train_batches=4"),
        ],
        [
            *("--model.init_args.net.init_args.dropout=0.2", "--data.init_args.num_workers=1"),
            *("--trainer.max_steps=7", "--trainer.max_epochs=-1"),
        ],
        [
            *("--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=6"),
            *("--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4"),
        ],
    ],
    ids=["dropout, often validated", "worker, steps", "accumulated, rarely validated"],
)
def test_the_demo_whatever_its_options(fit, options):
    stop_and_resume(fit, CONFIGS / "demo.yaml", [2, 4], *options)


@pytest.mark.parametrize(("batch", "options"), [(1, []), (8, ["--trainer.accumulate_grad_batches=2"])])
def test_the_last_good_checkpoint(fit, options, batch):
    config = CONFIGS / "demo.yaml"
    more = [*options, "--model.init_args.net.init_args.dropout=0.2", "--trainer.limit_train_batches=6"]
    whole = fit("whole", config, *more)
    good = fit("stopped", config, *more, spoil=batch)
    again = fit("stopped", config, *more, "--ckpt_path", str(good), spoil=(batch - 1) % len(options or [1]) + 1)
    assert_equal_ends(good, again)
    assert_equal_ends(whole, fit("stopped", config, *more, "--ckpt_path", str(good)))


def test_thrice_and_after_an_epoch(fit):
    stop_and_resume(fit, CONFIGS / "demo.yaml", [1, BATCHES, BATCHES + 1], signum=signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored(fit):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a shell
    try:
        last = fit("whole", CONFIGS / "demo.yaml", stop=1, signum=signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_checkpoint(last)["global_step"] == 2 * BATCHES


def test_a_finished_run_goes_on_for_longer(fit):
    config, schedule = CONFIGS / "demo.yaml", "--model.init_args.lr_scheduler=null"
    whole = fit("whole", config, schedule, "--trainer.max_epochs=3")
    done = fit("done", config, schedule, "--trainer.max_epochs=2")
    longer = fit("done", config, schedule, "--trainer.max_epochs=3", "--ckpt_path", str(done))
    found = differences(read_checkpoint(whole), read_checkpoint(longer))
    assert found == [], found[:10]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(fit, capsys):
    config = CONFIGS / "demo.yaml"
    whole = fit("whole", config)
    for folder, damage in (("stopped", "cut short"), ("killed", "gone")):
        last = fit(folder, config, stop=BATCHES + 1)
        if damage == "gone":
            last.unlink()
        else:
            last.write_bytes(last.read_bytes()[:5000])
        capsys.readouterr()
        resumed = fit(folder, config, "--ckpt_path", str(last))
        printed = capsys.readouterr().out
        assert f"checkpoint {last} is " in printed
        assert "last.previous.ckpt" in printed
        assert_equal_ends(whole, resumed)


def test_a_bad_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1 or None, got 0"):
        ResumeCheckpoint(every_n_steps=0)
