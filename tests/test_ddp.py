"""Two gloo processes, as a user starts them."""

import subprocess
import sys
from functools import partial
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
    # singular vectors of nearly equal values magnify rounding, which differs with the size of a batch
    "--model.init_args.net.init_args.taps.features=gram_diagonal",
    # AdamW's first steps follow the sign of a gradient, even where that is rounding
    "--model.init_args.optimizer=torch.optim.SGD",
    "--model.init_args.optimizer.init_args.lr=0.1",
    "--model.init_args.lr_scheduler=null",
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


def _named(name, message):
    return f"{name}: {message}"


def test_two_ranks_equal_one_at_the_same_global_batch(tmp_path):
    _, one = fit(tmp_path / "one", 1)
    printed, two = fit(tmp_path / "two", 2)
    assert one["state_dict"]["net.head.4.bias"].abs().max() > 1e-3  # it began at zero
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, atol=1e-5, rtol=1e-4, msg=partial(_named, name))
    results = [
        RunResult.load(tmp_path / name / "runs" / "demo_svd" / "version_0" / "result.json") for name in ("one", "two")
    ]
    for a, b in zip(results[0].epochs, results[1].epochs, strict=True):
        for name in ("train/loss", "val/loss", "train/acc", "val/acc", "val/acc5", "val/gap"):
            assert b.metrics[name] == pytest.approx(a.metrics[name], rel=1e-5, abs=1e-6), name
    assert printed.count("train acc %") == 1
    assert len(read_scoreboard(tmp_path / "two" / "runs" / "scoreboard.csv")) == 1
