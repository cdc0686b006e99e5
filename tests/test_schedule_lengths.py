"""Learning-rate schedules of whole runs: as long as the run, whatever makes it so long."""

import sys
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eigenscope import cli

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
CONFIGS = Path(__file__).parents[1] / "configs"
NET, SCHEDULE = "--model.init_args.net.init_args", "--model.init_args.lr_scheduler"
RESUMABLE = "--trainer.callbacks=[{class_path: ResumeCheckpoint}]"
COSINE = [f"{SCHEDULE}=eigenscope.optim.CosineAnnealingLR"]
PEAK = 1e-3
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks=null",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.num_workers=0",
]
UNLOGGED = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
DEMO = [
    f"--config={CONFIGS / 'demo.yaml'}",
    *QUIET,
    f"{NET}.width=16",
    f"{NET}.depth=1",
    f"{NET}.num_heads=2",
    "--data.init_args.train_size=1024",  # 8 steps an epoch
    "--data.init_args.test_size=100",
    "--trainer.max_epochs=2",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rates(*more):
    """The learning rate of every optimizer step of a run."""
    seen = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    try:
        cli.main(["fit", *more])
    finally:
        hook.remove()
    return seen


def expected(schedule, steps, every=1):
    """The learning rates of torch's own schedule, stepped every so many steps."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    made, seen = schedule(optimizer), []
    for step in range(1, steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0:
            made.step()
    return seen


def one_cycle(steps):
    return expected(lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=steps, pct_start=0.15), steps)


RUNS = {
    "max_epochs 2": ([], 16),
    "max_epochs 4": (["--trainer.max_epochs=4"], 32),
    "max_epochs 16": (["--trainer.max_epochs=16"], 128),
    "accumulate 4": (["--trainer.accumulate_grad_batches=4", "--trainer.max_epochs=4"], 8),
    "accumulate 3 of 8": (["--trainer.accumulate_grad_batches=3", "--trainer.max_epochs=4"], 12),
    "batch 256": (["--data.init_args.batch_size=256", "--trainer.max_epochs=3"], 12),
    "limit_train_batches 3": (["--trainer.limit_train_batches=3", "--trainer.max_epochs=4"], 12),
    "max_steps 11": (["--trainer.max_steps=11"], 11),
    "max_steps alone": (["--trainer.max_steps=19", "--trainer.max_epochs=-1"], 19),
    "max_steps beyond": (["--trainer.max_steps=100"], 16),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_demo_anneals_to_its_end(run):
    options, steps = RUNS[run]
    seen = rates(*DEMO, *UNLOGGED, *options)
    assert seen == one_cycle(steps)
    assert seen[-1] <= 0.01 * PEAK < 0.9 * PEAK < max(seen)


def ranks_rates(arguments):
    return rates(*arguments)


@pytest.mark.xdist_group("ddp")
def test_two_ranks_anneal_to_the_end(two_ranks):
    first, second = (
        outcome.value
        for outcome in two_ranks.run(
            ranks_rates, [*DEMO, *UNLOGGED, "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=3"]
        )
    )
    assert first == second == one_cycle(24)
    assert first[-1] <= 0.01 * PEAK


def test_the_demo_has_the_rates_that_it_had_when_its_length_was_stated():
    # 62 steps an epoch in 8 epochs, as of 8000 images in batches of 128
    demo = [argument for argument in DEMO if "max_epochs" not in argument]
    seen = rates(*demo, *UNLOGGED, "--data.init_args.train_size=124", "--data.init_args.batch_size=2")
    stated = lambda o: lr_scheduler.OneCycleLR(o, PEAK, epochs=8, steps_per_epoch=62, pct_start=0.15)  # noqa: E731
    assert seen == expected(stated, 496)


def test_a_cosine_has_the_rates_that_it_had_when_its_length_was_stated():
    svae = [f"--config={CONFIGS / 'svae_noise_small.yaml'}", *QUIET, *UNLOGGED, f"{NET}.hidden=8", f"{NET}.depth=0"]
    sizes = ["image_size=8", "samples_per_epoch=2", "val_samples_per_type=1", "batch_size=1"]
    seen = rates(*svae, *(f"--data.init_args.{size}" for size in sizes))
    assert seen == expected(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12), 24, every=2)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        (["--trainer.max_epochs=3"], 3),
        (["--trainer.max_steps=19", "--trainer.max_epochs=5"], 3),  # of which the third is cut short
        (["--trainer.max_steps=19", "--trainer.max_epochs=-1"], 3),
        (["--trainer.max_steps=5", "--trainer.accumulate_grad_batches=4", "--trainer.max_epochs=-1"], 3),
    ],
)
def test_a_schedule_that_counts_epochs_is_as_long_as_there_are_epochs(options, length):
    run = cli.main(["fit", *DEMO, *UNLOGGED, *COSINE, "--model.init_args.lr_interval=epoch", *options])
    (config,) = run.trainer.lr_scheduler_configs
    assert config.scheduler.T_max == length
    assert (run.trainer.fit_loop.epoch_progress.current.ready, config.interval) == (length, "epoch")


def test_a_run_whose_length_nobody_knows_is_refused(monkeypatch):
    unknown = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"]
    for interval in ("epoch", "step"):
        monkeypatch.setattr(
            sys, "argv", ["eigenscope", "fit", *DEMO, *unknown, f"--model.init_args.lr_interval={interval}"]
        )
        with pytest.raises(SystemExit) as exit_:
            cli.script()
        assert str(exit_.value) == (
            "error: lr_scheduler OneCycleLR needs total_steps, because nobody knows how long the run is: set "
            "trainer.max_epochs or trainer.max_steps, which it follows, or state it "
            "(model.init_args.lr_scheduler.init_args.total_steps)"
        )
    rates(*DEMO, *UNLOGGED, *unknown[:1], "--trainer.max_time=00:00:00:00", f"{SCHEDULE}=null")  # needs no length


@pytest.mark.parametrize(
    ("package", "given"),
    [
        ("torch.optim.lr_scheduler", []),
        ("torch.optim.lr_scheduler", [f"{SCHEDULE}.init_args.epochs=2"]),
        ("eigenscope.optim", [f"{SCHEDULE}.init_args.epochs=2"]),
    ],
)
def test_half_a_length_is_refused(package, given):
    options = [f"{SCHEDULE}={package}.OneCycleLR", f"{SCHEDULE}.init_args.max_lr=1e-3", *given]
    with pytest.raises(ValueError, match=r"OneCycleLR needs total_steps, or epochs and .* follows the run"):
        cli.main(["fit", *DEMO, *UNLOGGED, *options])


def test_a_short_name_that_torch_has_too_means_the_schedule_that_follows_the_run():
    config = cli.resolve([*DEMO, f"{SCHEDULE}=CosineAnnealingLR"])
    assert config["model"]["init_args"]["lr_scheduler"]["class_path"] == "eigenscope.optim.CosineAnnealingLR"


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (100, ["spans 100 steps but the run ends after 16: the last learning rate will be 0.938 of the peak"]),
        (
            5,
            ["spans 5 steps but the run takes 16: the learning rate comes back up, and the last one will be 0.0955 of"],
        ),
        (16, []),
    ],
)
def test_a_stated_length_that_does_not_fit_is_said_before_training(stated, said, capsys):
    rates(*DEMO, *UNLOGGED, *COSINE, f"{SCHEDULE}.init_args.T_max={stated}")
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("lr_scheduler CosineAnnealingLR")]
    assert len(lines) == len(said)
    assert all(sentence in line for sentence, line in zip(said, lines, strict=True))


def last(run):
    return str(Path(run.trainer.log_dir) / "checkpoints" / "last.ckpt")


def test_a_run_that_is_resumed_longer_follows_the_new_length(capsys):
    part = cli.main(["fit", *DEMO, RESUMABLE])
    capsys.readouterr()
    seen = rates(*DEMO, RESUMABLE, "--trainer.max_epochs=4", f"--ckpt_path={last(part)}")
    assert seen == one_cycle(32)[16:]
    said = (
        "lr_scheduler OneCycleLR follows the run, which takes 32 steps instead of 16: it continues at a learning rate"
    )
    assert capsys.readouterr().out.count(said) == 1


def test_a_stated_length_is_resumed_as_it_was_and_a_derived_one_takes_over_a_stated_one(capsys):
    stated = {"max_lr": PEAK, "epochs": 4, "steps_per_epoch": 8, "pct_start": 0.15}
    theirs = [f"{SCHEDULE}=torch.optim.lr_scheduler.OneCycleLR"]
    theirs += [f"{SCHEDULE}.init_args.{name}={value}" for name, value in stated.items()]
    part = cli.main(["fit", *DEMO, RESUMABLE, *theirs])
    assert "spans 32 steps but the run ends after 16" in capsys.readouterr().out
    longer = [*DEMO, *UNLOGGED, "--trainer.max_epochs=4", f"--ckpt_path={last(part)}"]
    for schedule in (theirs, []):  # the latter is the demo's own, which states no length
        assert rates(*longer, *schedule) == one_cycle(32)[16:]
        assert "lr_scheduler OneCycleLR" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"lr_scheduler.*epochs"):
        rates(*longer, *theirs, f"{SCHEDULE}.init_args.epochs=5")
