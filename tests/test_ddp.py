"""Two gloo processes, as a user starts them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eigenscope.study import RunResult, read_scoreboard

CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = [
    "--config",
    str(CONFIGS / "demo_svd.yaml"),
    "--model.init_args.net.init_args.width=16",
    "--model.init_args.net.init_args.num_heads=2",
    # AdamW's first steps follow the sign of a gradient, even where that is rounding
    "--model.init_args.optimizer=torch.optim.SGD",
    "--model.init_args.optimizer.init_args.lr=0.1",
    "--data.init_args.train_size=202",
    "--data.init_args.test_size=101",  # not a multiple of the ranks: no image may be counted twice
    "--data.init_args.batch_size=50",
    "--data.init_args.augmentation=crop_flip",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def fit(folder, ranks):
    folder.mkdir()
    more = [] if ranks == 1 else ["--trainer.strategy=ddp", f"--trainer.devices={ranks}"]
    command = [sys.executable, "-W", "ignore", "-m", "cli", "fit", *ARGUMENTS, *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = folder.glob("runs/demo_svd/version_0/checkpoints/last.ckpt")
    return done.stdout, torch.load(checkpoint, weights_only=True)


@pytest.mark.timeout(300)
def test_two_ranks_equal_one_at_the_same_global_batch(tmp_path):
    _, one = fit(tmp_path / "one", 1)
    printed, two = fit(tmp_path / "two", 2)
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(
            two["state_dict"][name], value, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    results = [
        RunResult.load(tmp_path / name / "runs" / "demo_svd" / "version_0" / "result.json") for name in ("one", "two")
    ]
    for a, b in zip(results[0].epochs, results[1].epochs, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
        assert b.val_acc == pytest.approx(a.val_acc, abs=1e-6)
        assert b.train_acc == pytest.approx(a.train_acc, abs=1e-6)
    assert printed.count("train %") == 1
    assert len(read_scoreboard(tmp_path / "two" / "runs" / "scoreboard.csv")) == 1
