"""A signal at any moment of a run leaves a checkpoint of its step, a record of why, and a code that says which."""

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from eigenscope import cli
from eigenscope.callbacks import TrainingInterrupted
from eigenscope.checkpoints import read_checkpoint
from eigenscope.cli import lightning_cli
from eigenscope.results.run_metadata import RunMetadata
from tests import random_stops

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
LAST = Path("runs/demo/version_0/checkpoints/last.ckpt")
NET = "--model.init_args.net.init_args"
SMALL = [
    *("fit", "--config", str(CONFIGS / "demo.yaml")),
    *(f"{NET}.{option}" for option in ("width=16", "depth=2", "num_heads=2", "dropout=0.1")),
    *(f"--data.init_args.{option}" for option in ("train_size=100", "test_size=100", "batch_size=20")),
    "--data.init_args.num_workers=0",
    "--model.init_args.lr_scheduler=null",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


class Sends(Callback):
    """Sends this process a signal, and perhaps more, when a hook is called for the n-th time."""

    def __init__(self, hook, count, numbers):
        self.left, self.numbers = count, numbers
        setattr(self, hook, self.act)

    def act(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in a folder; ``sent`` is (hook, count, signals)."""
    make = lightning_cli.EigenscopeCLI.instantiate_trainer

    def run(folder, *more, sent=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)

        def with_signals(self, **options):
            trainer = make(self, **options)
            trainer.callbacks[:0] = [Sends(*sent)] if sent else []
            return trainer

        with monkeypatch.context() as patch:
            patch.setattr(lightning_cli.EigenscopeCLI, "instantiate_trainer", with_signals)
            return cli.main([*SMALL, *more])

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stops: its weights, metrics and last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        torch.set_num_threads(1)
        done = cli.main(SMALL)
        return done.model.state_dict(), done.trainer.callback_metrics, read_checkpoint(LAST)


MOMENTS = {  # hook, how often it has been called, and the step that is saved
    "start": ("on_fit_start", 1, 0),
    "step": ("on_train_batch_end", 7, 7),
    "validation": ("on_validation_batch_end", 2 + 3, 5),
    "last validation": ("on_validation_start", 3, 10),
    "writing": ("on_save_checkpoint", 1, 5),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_changes_nothing(run, whole, moment):
    hook, count, step = MOMENTS[moment]
    with pytest.raises(TrainingInterrupted, match=f"SIGTERM ended the run after step {step}; to resume"):
        run("stopped", sent=(hook, count, [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]))
    assert RunMetadata.load(LAST.parents[1]).outcome == "interrupted"
    assert read_checkpoint(LAST)["global_step"] == step
    resumed = run("stopped", "--ckpt_path", str(LAST))
    last, (weights, metrics, expected) = read_checkpoint(LAST), whole
    for name, weight in weights.items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert metrics == resumed.trainer.callback_metrics
    assert last["loops"] == expected["loops"]


def stopped_by_one(rank, hook, count):
    """What ends this rank when one of them is sent a signal."""
    trainer_of = lightning_cli.EigenscopeCLI.instantiate_trainer

    def with_signals(self, **options):
        trainer = trainer_of(self, **options)
        trainer.callbacks[:0] = [Sends(hook, count, [signal.SIGTERM])] if trainer.global_rank == rank else []
        return trainer

    # ranks have 3 and 2 batches of the validation set
    more = ["--data.init_args.test_size=51", "--trainer.strategy=ddp", "--trainer.devices=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_cli.EigenscopeCLI, "instantiate_trainer", with_signals)
        try:
            cli.main([*SMALL, *more])
        except TrainingInterrupted as stop:
            return str(stop)


@pytest.mark.xdist_group("ddp")
@pytest.mark.parametrize(
    ("rank", "hook", "count", "step"),
    [
        (1, "on_train_batch_end", 3, 3),
        (1, "on_validation_batch_end", 2 + 1, 5),
        (0, "on_validation_batch_end", 2 + 3, 5),
    ],
    ids=["step", "validation", "longer validation"],
)
def test_ranks_agree_on_a_signal_to_one(two_ranks, rank, hook, count, step, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ends = [outcome.value for outcome in two_ranks.run(stopped_by_one, rank, hook, count)]
    assert ends == [f"SIGTERM ended the run after step {step}; to resume: --ckpt_path {LAST}"] * 2
    assert read_checkpoint(LAST)["global_step"] == step
    assert RunMetadata.load(LAST.parents[1]).outcome == "interrupted"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_stops_at_random_moments_change_nothing(name, tmp_path):
    """STOPS says how many; two ranks with loader processes are sent SIGTERM, one is sent SIGKILL."""
    ranks, times = (2, 2) if name == "SIGTERM" else (1, 3)
    times = int(os.environ.get("STOPS", times))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = random_stops.stops(tmp_path, signal.Signals[name], times, 0, ranks, "fork", 0.5)
    assert wrong == 0
