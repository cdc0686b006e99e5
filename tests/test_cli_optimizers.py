"""Split optimizers at the command line: clipping, accumulation, schedules, resuming."""

from pathlib import Path

import pytest
import torch

from eigenscope import cli

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = [
    "--model.init_args.net.init_args.width=16",
    "--model.init_args.net.init_args.depth=2",
    "--model.init_args.net.init_args.num_heads=2",
    "--model.init_args.lr_scheduler.init_args.epochs=4",
    "--model.init_args.lr_scheduler.init_args.steps_per_epoch=2",
    "--data.init_args.train_size=200",
    "--data.init_args.test_size=100",
    "--data.init_args.batch_size=50",
    "--data.init_args.num_workers=0",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.gradient_clip_val=0.1",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def fit(overlay, epochs, *more):
    overlaid = ["--config", str(CONFIGS / "demo.yaml"), "--config", str(CONFIGS / "optimizer" / f"{overlay}.yaml")]
    return cli.main(["fit", *overlaid, *ARGUMENTS, f"--trainer.max_epochs={epochs}", *more])


def same(a, b):
    """Whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    ("overlay", "precision"),
    [
        pytest.param("soap", "bf16-true", marks=pytest.mark.long),
        pytest.param("rekls", "32-true", marks=pytest.mark.long),
        ("muon", "bf16-true"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(overlay, precision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = [f"--trainer.precision={precision}"]
    whole = fit(overlay, 3, *more)
    assert whole.trainer.global_step == 6
    optimizer = whole.trainer.optimizers[0]
    for group in optimizer.param_groups:  # of OneCycleLR, after its top
        assert group["lr"] == whole.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0] != 1e-3
        assert 0.85 < group["betas"][0] < 0.95
    fit(overlay, 2, *more)
    checkpoint = "runs/demo/version_1/checkpoints/last.ckpt"
    resumed = fit(overlay, 3, *more, f"--ckpt_path={checkpoint}")
    assert resumed.trainer.global_step == 6
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.trainer.optimizers[0].state_dict(), optimizer.state_dict())
    assert all(state.get("step", 6) == 6 for state in optimizer.state.values())


def test_optimizers_nest_by_their_names_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(
        "soap",
        1,
        "--model.init_args.optimizer.init_args.matrix=eigenscope.optim.REKLS",
        "--model.init_args.optimizer.init_args.other=torch.optim.SGD",
        "--model.init_args.optimizer.init_args.other.init_args.lr=0.1",
        "--model.init_args.optimizer.init_args.max_side=40",
        "--model.init_args.lr_scheduler.init_args.cycle_momentum=false",
    )
    optimizer = run.trainer.optimizers[0]
    assert (type(optimizer.matrix).__name__, type(optimizer.other).__name__) == ("REKLS", "SGD")
    assert {route.reason for route in optimizer.routes} >= {"matrix", "a side over 40"}
