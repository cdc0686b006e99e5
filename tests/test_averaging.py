"""Weight averaging by Lightning's callbacks: stopped and resumed, or finished and extended, it changes nothing.

``AVERAGING_TRIALS=10 pytest tests/test_averaging.py -k random`` tries that many runs, stopped at random steps, for each
callback; as many on two ranks.
"""

import os
import random
import runpy
import signal
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import nn

from eigenscope import cli
from eigenscope.adapters import Library, MissingNameError
from eigenscope.callbacks import ExactResume, FiniteGuard, ResumeCheckpoint, SafeCheckpointIO, TrainingInterrupted
from eigenscope.checkpoints import read_checkpoint
from eigenscope.cli import lightning_cli
from eigenscope.datamodules import SyntheticImagesDataModule
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.optim import REKLS, SOAP, Muon, OneCycleLR, SplitOptimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch"),
    pytest.mark.filterwarnings("ignore:SWA is initializing after swa_start"),
    pytest.mark.filterwarnings("ignore:The checkpoint was not created with WeightAveraging"),
    pytest.mark.xdist_group("ddp"),
]
HERE = Path(__file__)
DEMO = HERE.parents[1] / "configs" / "demo.yaml"
TRIALS = int(os.environ.get("AVERAGING_TRIALS", "2"))
STEPS, EPOCHS = 4, 4  # of an epoch, of a run
KINDS = ("ema", "swa")
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
    **{
        kind.__name__: partial(SplitOptimizer, matrix=partial(kind, lr=1e-2), other=partial(torch.optim.AdamW, lr=1e-2))
        for kind in (SOAP, REKLS, Muon)
    },
}
differences = runpy.run_path(str(HERE.with_name("test_resume.py")))["differences"]


class Net(nn.Module):
    """A network whose buffers are running statistics, counts, and indices; one matrix is for a matrix optimizer."""

    def __init__(self, norm=False):
        super().__init__()
        self.num_classes = 100
        norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), norm, nn.Dropout(0.1), nn.Flatten(), nn.Linear(96, 12))
        self.head = nn.Linear(12, 100)
        self.register_buffer("order", torch.arange(12).flip(0))

    def forward(self, images):
        return self.head(self.body(images).tanh()[:, self.order])


class StopAfter(Callback):
    """Sends this process a signal at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Spoil(Callback):
    """Makes the gradients of a step infinite."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step:
            pl_module.net.head.weight.grad.fill_(torch.inf)


class Recorder(Callback):
    """Keeps the learning rate of every step, by its number."""

    def __init__(self, rates):
        self.rates = rates

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates[trainer.global_step] = [group["lr"] for group in optimizer.param_groups]


def make(kind, start=2, **options):
    if kind == "ema":
        return EMAWeightAveraging(**{"decay": 0.8, "update_starting_at_step": (start - 1) * STEPS + 1} | options)
    if kind == "equal":
        return WeightAveraging(**options)
    return StochasticWeightAveraging(**{"swa_lrs": 3e-2, "swa_epoch_start": start, "annealing_epochs": 3} | options)


def fit(folder, average, *, epochs=EPOCHS, stop=None, resume=None, norm=False, optimizer="adamw", **options):
    """Fits below a folder; returns trainer, module and the path of the resume checkpoint."""
    torch.manual_seed(0)
    schedule = options.pop("schedule", None)
    module = ImageClassificationModule(Net(norm), OPTIMIZERS[optimizer], schedule, "step")
    more = options.pop("callbacks", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_epochs=epochs,
            limit_val_batches=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[SafeCheckpointIO()],
            callbacks=[
                *([] if stop is None else [StopAfter(stop)]),
                *([] if average is None else [average]),
                *more,
                ExactResume(),
                ResumeCheckpoint(),
            ],
            **{"limit_train_batches": STEPS} | options,
        )
        torch.manual_seed(1)
        data = SyntheticImagesDataModule(train_size=100, test_size=50, protocol="test", batch_size=8, num_workers=0)
        try:
            trainer.fit(module, data, ckpt_path=resume)
            assert stop is None
        except TrainingInterrupted:
            assert stop is not None
    return trainer, module, Path(folder) / "checkpoints" / "last.ckpt"


def unequal(one, other):
    """What two runs end with otherwise: all of their checkpoints, and the weights in memory."""
    found = differences(read_checkpoint(one[2]), read_checkpoint(other[2]))
    found = [line for line in found if ".val_loop.batch_progress" not in line]  # of which a resumed run counts others
    found += differences(dict(one[1].state_dict()), dict(other[1].state_dict()), "in memory")
    return found + differences(dict(one[0].callback_metrics), dict(other[0].callback_metrics), "metrics")


def drawn(trial, kind):
    """A run at random, and the step it is stopped after."""
    draw = random.Random(f"{kind} {trial}")
    how = {
        "optimizer": draw.choice(list(OPTIMIZERS)),
        "accumulate_grad_batches": draw.choice([1, 1, 2]),
        "norm": draw.random() < 0.5,
        "schedule": draw.choice([None, partial(OneCycleLR, max_lr=2e-2, cycle_momentum=False)]),
        "val_check_interval": draw.choice([1.0, 0.5]),
    }
    how["limit_train_batches"] = STEPS * how["accumulate_grad_batches"]
    start, use = draw.choice([1, 2, 3]), draw.choice([True, False])
    average = partial(make, kind, start, **({"use_buffers": use} if kind == "ema" else {}))
    return average, how, draw.randrange(1, STEPS * EPOCHS), draw.choice([1, 2])


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_random_steps_and_finished_and_extended(kind, trial, tmp_path):
    average, how, stop, shorter = drawn(trial, kind)
    rates = [{}, {}]
    whole = fit(tmp_path / "whole", average(), callbacks=[Recorder(rates[0])], **how)
    *_, last = fit(tmp_path / "stopped", average(), stop=stop, callbacks=[Recorder(rates[1])], **how)
    assert read_checkpoint(last)["global_step"] == stop
    resumed = fit(tmp_path / "stopped", average(), resume=last, callbacks=[Recorder(rates[1])], **how)
    assert unequal(whole, resumed) == []
    assert rates[0] == rates[1]
    how["schedule"] = None  # which follows the run
    whole = fit(tmp_path / "longer", average(), **how)
    *_, last = fit(tmp_path / "done", average(), epochs=EPOCHS - shorter, **how)
    assert unequal(whole, fit(tmp_path / "done", average(), resume=last, **how)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_before_the_average_begins(kind, tmp_path):
    """What was never averaged is not the initial weights, in validation, in checkpoints and at the end."""
    plain = fit(tmp_path / "plain", None, epochs=2)
    trainer, module, last = fit(tmp_path / kind, make(kind, start=EPOCHS + 1, **{}), epochs=2)
    assert differences(dict(plain[1].state_dict()), dict(module.state_dict())) == []
    assert differences(read_checkpoint(plain[2])["state_dict"], read_checkpoint(last)["state_dict"]) == []
    assert plain[0].callback_metrics["val/loss"] == trainer.callback_metrics["val/loss"]


@pytest.mark.parametrize("kind", [*KINDS, "equal"])
def test_the_average_by_its_definition(kind, tmp_path):
    """At the end of the run; what is no running statistic stays as it is."""
    seen = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(pl_module.net.head.weight.detach().double().clone())

    _, module, last = fit(tmp_path, make(kind, start=2), callbacks=[Keep()])
    if kind == "swa":  # of the weights at the start of each epoch from the second on
        expected = torch.stack([seen[epoch * STEPS - 1] for epoch in range(1, EPOCHS)]).mean(0)
    elif kind == "equal":
        expected = torch.stack(seen).mean(0)
    else:
        expected = seen[STEPS + 1]
        for weight in seen[STEPS + 2 :]:
            expected = 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(module.net.head.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(module.net.order, torch.arange(12).flip(0))
    checkpoint = read_checkpoint(last)
    assert differences(dict(module.state_dict()), checkpoint["state_dict"]) == []
    torch.testing.assert_close(checkpoint["current_model_state"]["net.head.weight"].double(), seen[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_that_are_validated_are_those_that_are_read(kind, tmp_path):
    best = ModelCheckpoint(monitor="val/loss", filename="best")
    trainer, module, _ = fit(tmp_path, make(kind), callbacks=[best], norm=True)
    (scores,) = trainer.validate(module, trainer.datamodule, best.best_model_path, verbose=False)
    assert scores["val/loss"] == pytest.approx(float(best.best_model_score), rel=1e-6)
    tested = trainer.test(module, trainer.datamodule, best.best_model_path, verbose=False)  # the same images
    weights = read_checkpoint(Path(best.best_model_path))["state_dict"]
    assert differences(dict(module.state_dict()), weights) == []
    assert tested


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step(kind, tmp_path):
    how = {"callbacks": [FiniteGuard("skip"), Spoil(2 * STEPS + 1)]}
    whole = fit(tmp_path / "whole", make(kind), **how)
    assert all(value.isfinite().all() for value in whole[1].state_dict().values())
    how["callbacks"] = [FiniteGuard("skip"), Spoil(2 * STEPS + 1)]
    *_, last = fit(tmp_path / "stopped", make(kind), stop=2 * STEPS + 2, **how)
    assert unequal(whole, fit(tmp_path / "stopped", make(kind), resume=last, callbacks=[FiniteGuard("skip")])) == []


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("step", [STEPS - 1, 2 * STEPS, 2 * STEPS + 2])
def test_a_run_that_max_steps_ended_goes_on(kind, step, tmp_path):
    """At the end of an epoch and within one, before and after the average begins."""
    whole = fit(tmp_path / "whole", kind and make(kind))
    *_, last = fit(tmp_path / "done", kind and make(kind), max_steps=step)
    assert read_checkpoint(last)["global_step"] == step
    assert unequal(whole, fit(tmp_path / "done", kind and make(kind), resume=last)) == []


def test_a_finished_run_that_is_resumed_has_its_averages(tmp_path):
    for kind in KINDS:
        _, module, last = fit(tmp_path / kind, make(kind))
        again = fit(tmp_path / kind, make(kind), resume=last)
        assert differences(dict(module.state_dict()), dict(again[1].state_dict())) == []


def test_a_share_of_the_run_means_another_epoch_in_a_longer_one(tmp_path):
    def share():
        return make("swa", start=0.5)

    whole = fit(tmp_path / "whole", share(), epochs=8)  # from its epoch 4 on
    *_, last = fit(tmp_path / "early", share(), stop=2)
    assert unequal(whole, fit(tmp_path / "early", share(), epochs=8, resume=last)) == []
    *_, last = fit(tmp_path / "late", share())
    with pytest.raises(ValueError, match="began to average in epoch 2 of the run that is resumed, but") as error:
        fit(tmp_path / "late", share(), epochs=8, resume=last)
    assert "swa_epoch_start=0.5 of max_epochs=8 is epoch 4" in str(error.value)
    whole = fit(tmp_path / "fixed", make("swa", start=2), epochs=8)
    assert unequal(whole, fit(tmp_path / "late", make("swa", start=2), epochs=8, resume=last)) == []


def test_two_averages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most one that averages the weights, got EMAWeightAveraging and Stoch"):
        fit(tmp_path, make("ema"), callbacks=[make("swa")])


def test_without_a_private_name_it_resumes_as_lightning_does(tmp_path, monkeypatch, capsys):
    get = Library.get

    def without(self, owner, name):
        if name == "_latest_update_epoch":
            raise MissingNameError("lightning has no _latest_update_epoch")
        return get(self, owner, name)

    monkeypatch.setattr(Library, "get", without)
    average = make("ema")
    fit(tmp_path, average, epochs=1)
    assert type(average) is EMAWeightAveraging
    assert "note: weight averaging is resumed as Lightning does it, not bit for bit" in capsys.readouterr().err


SMALL = {
    "--model.init_args.net.init_args": "{width: 16, depth: 1, num_heads: 2}",
    "--data.init_args": "{train_size: 100, test_size: 100, batch_size: 10, num_workers: 0}",
    "--trainer.accelerator": "cpu",
    "--trainer.limit_train_batches": STEPS,
    "--trainer.limit_val_batches": 1,
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--trainer.log_every_n_steps": 1,
    "--model.init_args.lr_scheduler": "null",
    "--config": DEMO.parent / "optimizer" / "soap.yaml",
}
ASKED = {
    "ema": ["EMAWeightAveraging", "--trainer.callbacks.init_args.decay=0.8"],
    "swa": [
        "StochasticWeightAveraging",
        "--trainer.callbacks.init_args={swa_lrs: 0.01, swa_epoch_start: 2, annealing_epochs: 3}",
    ],
}


TAKEN = []  # the weights that the latest run ended with in memory


def command(kind, *more, stop=None, subcommand="fit"):
    """Runs the demo with an averaging callback, in the working directory; returns the path of the resume checkpoint."""
    make_trainer = lightning_cli.EigenscopeCLI.instantiate_trainer

    def with_stop(self, **options):
        trainer = make_trainer(self, **options)
        trainer.callbacks[:0] = [] if stop is None else [StopAfter(stop)]
        return trainer

    options = [f"{key}={value}" for key, value in SMALL.items()]
    callbacks = [f"--trainer.callbacks+={ASKED[kind][0]}", *ASKED[kind][1:]] if kind else []
    lightning_cli.EigenscopeCLI.instantiate_trainer = with_stop
    try:
        run = cli.main([subcommand, f"--config={DEMO}", *options, *callbacks, *more])
        TAKEN[:] = [dict(run.model.state_dict())]
        assert stop is None
    except TrainingInterrupted:
        assert stop is not None
    finally:
        lightning_cli.EigenscopeCLI.instantiate_trainer = make_trainer
    (checkpoint,) = Path("runs").glob("*/version_0/checkpoints/last.ckpt")
    return str(checkpoint.resolve())


def stopped_and_extended(folder, kind, stop, more):
    """What a run that was stopped, then finished, then extended ends with otherwise than one that was not."""
    ends = []
    for name in ("whole", "stopped"):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    os.chdir(Path(folder) / "whole")
    ends.append(command(kind, f"--trainer.max_epochs={EPOCHS}", *more))
    os.chdir(Path(folder) / "stopped")
    last = os.path.relpath(command(kind, f"--trainer.max_epochs={EPOCHS - 1}", *more, stop=stop))
    command(kind, f"--trainer.max_epochs={EPOCHS - 1}", *more, f"--ckpt_path={last}")
    ends.append(command(kind, f"--trainer.max_epochs={EPOCHS}", *more, f"--ckpt_path={last}"))
    return differences(*(read_checkpoint(Path(end)) for end in ends))


def test_by_the_command_line_the_averages_are_validated_and_not_forgotten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    last = f"--ckpt_path={command('ema', '--trainer.max_epochs=2')}"
    saved = read_checkpoint(Path(last.partition("=")[2]))
    capsys.readouterr()
    command(None, last, subcommand="validate")
    assert "The checkpoint's weights are their averages" in capsys.readouterr().out
    with pytest.raises(lightning_cli.ConfigurationError, match=r"trainer\.callbacks\.EMAWeightAveraging"):
        command(None, last, "--trainer.max_epochs=2")
    command(None, last, "--trainer.max_epochs=2", "--resume_allow=trainer.callbacks.EMAWeightAveraging")
    assert differences(TAKEN[0], saved["current_model_state"]) == []


def on_two_ranks(folder, kind, stop):
    return stopped_and_extended(folder, kind, stop, ["--trainer.strategy=ddp", "--trainer.devices=2"])


@pytest.mark.parametrize("trial", range(max(1, TRIALS - 1)))
@pytest.mark.parametrize("kind", ["ema", pytest.param("swa", marks=pytest.mark.long)])
def test_on_two_ranks_at_random_steps(kind, trial, tmp_path, two_ranks):
    stop = random.Random(f"{kind} {trial} ranks").randrange(1, STEPS * (EPOCHS - 1))
    assert [outcome.value for outcome in two_ranks.run(on_two_ranks, str(tmp_path), kind, stop)] == [[], []]
