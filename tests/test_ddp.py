"""Two gloo processes, as a user starts them."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from eigenscope.study import RunResult, read_scoreboard

CONFIGS = Path(__file__).parents[1] / "configs"
SGD = [
    # Adam's first steps follow the sign of a gradient, even where that is rounding
    "--model.init_args.optimizer=torch.optim.SGD",
    "--model.init_args.optimizer.init_args.lr=0.1",
    "--model.init_args.lr_scheduler=null",
]
COMMON = [
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
ARGUMENTS = {
    "demo_svd": [
        "--model.init_args.net.init_args.width=16",
        "--model.init_args.net.init_args.num_heads=2",
        # singular vectors of nearly equal values magnify rounding, which differs with the size of a batch
        "--model.init_args.net.init_args.taps.features=gram_diagonal",
        "--data.init_args.train_size=202",
        "--data.init_args.test_size=101",  # not a multiple of the ranks: no image may be counted twice
        "--data.init_args.batch_size=50",
        "--data.init_args.augmentation=crop_flip",
    ],
    "svae_noise_small": [
        "--data.init_args.image_size=16",
        "--data.init_args.samples_per_epoch=160",
        "--data.init_args.val_samples_per_type=3",
        "--data.init_args.batch_size=32",
        "--data.init_args.curriculum={epochs: [1], tiers: [[gaussian, cauchy, pink], [uniform, brown]]}",
        "--data.init_args.types=[gaussian, cauchy, pink, uniform, brown]",  # 15 validation images
    ],
}


def fit(folder, name, ranks, *more, optimizer=SGD):
    folder.mkdir()
    more = [*more, *([] if ranks == 1 else ["--trainer.strategy=ddp", f"--trainer.devices={ranks}"])]
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), *optimizer, *COMMON, *ARGUMENTS[name], *more]
    command = [sys.executable, "-W", "ignore", "-m", "cli", "fit", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = folder.glob(f"runs/{name}/version_0/checkpoints/last.ckpt")
    return done.stdout, torch.load(checkpoint, weights_only=True)


def result(folder, name):
    return RunResult.load(folder / "runs" / name / "version_0" / "result.json")


def _named(name, message):
    return f"{name}: {message}"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_two_ranks_equal_one_at_the_same_global_batch(name, tmp_path):
    _, one = fit(tmp_path / "one", name, 1)
    printed, two = fit(tmp_path / "two", name, 2)
    begun_at_zero = {"demo_svd": "net.head.4.bias", "svae_noise_small": "net.smoothing.layers.2.weight"}[name]
    assert one["state_dict"][begun_at_zero].abs().max() > 1e-3
    for key, value in one["state_dict"].items():
        if "untrained" not in key:  # of the first batch of a rank
            torch.testing.assert_close(two["state_dict"][key], value, atol=1e-5, rtol=1e-4, msg=partial(_named, key))
    for a, b in zip(result(tmp_path / "one", name).epochs, result(tmp_path / "two", name).epochs, strict=True):
        compared = [key for key in a.metrics if not key.startswith(("geometry", "train/loss_step"))]
        assert len(compared) >= 6
        for key in compared:
            assert b.metrics[key] == pytest.approx(a.metrics[key], rel=1e-5, abs=1e-6), key
    assert printed.count("epoch   train") + printed.count("epoch train") == 1
    assert len(read_scoreboard(tmp_path / "two" / "runs" / "scoreboard.csv")) == 1


def test_two_ranks_add_up_what_compressed_keys_do(tmp_path):
    overlay = ["--config", str(CONFIGS / "callbacks" / "kv_check.yaml")]
    small = ["--data.init_args.train_size=50", "--data.init_args.test_size=51", "--trainer.max_epochs=1"]
    printed, _ = fit(tmp_path / "two", "demo_svd", 2, *overlay, *small)
    assert printed.count("Compressed keys and values") == 1
    # One rank has batches of 25 and of 1, which is measured; the other has one of 25, of whose 8 samples half are.
    assert f" {1 + 4} predictions" in printed
    assert "nan" not in printed.partition("Compressed keys and values")[2]


def test_two_ranks_agree_on_the_cv_policy(tmp_path):
    overlay = ["--config", str(CONFIGS / "cv" / "align_hand.yaml")]
    _, checkpoint = fit(tmp_path / "two", "svae_noise_small", 2, *overlay)
    (state,) = [value for key, value in checkpoint["callbacks"].items() if "CVLossSchedule" in key]
    last = result(tmp_path / "two", "svae_noise_small").epochs[-1]
    assert last.metrics["cv_M/ema"] == pytest.approx(state["sectors"]["M"]["ema"])


def test_two_ranks_equal_one_with_matrices_preconditioned(tmp_path):
    split = "--model.init_args.optimizer.init_args"
    arguments = [
        *("--config", str(CONFIGS / "optimizer" / "rekls.yaml")),
        "--model.init_args.lr_scheduler=null",
        # A factor of a long matrix is singular at first, and any basis of its kernel is an eigenbasis: square ones
        "--model.init_args.net.init_args.mlp_ratio=1.0",
        f"{split}.exclude=[head.*, '*qkv*']",
        # where eps is small Adam makes steps of full size out of rounding
        f"{split}.lr=1e-2",
        f"{split}.matrix.init_args.eps=1e-2",
        f"{split}.rest.init_args.eps=1e-2",
    ]
    runs = {ranks: fit(tmp_path / f"{ranks}", "demo_svd", ranks, *arguments, optimizer=[]) for ranks in (1, 2)}
    (_, one), (printed, two) = runs.values()
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, atol=1e-5, rtol=1e-4, msg=partial(_named, key))
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two)]
    for index, state in states[0].items():
        for name in ("L", "R") if "L" in state else ():
            assert torch.dist(states[1][index][name], state[name]) < 1e-4 * state[name].norm()
    assert sum("L" in state for state in states[0].values()) == 4 * 3
    assert printed.count("biases, gains") == 1  # the routing table, of rank zero alone
