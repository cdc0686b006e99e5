"""Two gloo processes equal one at the same global batch, and agree with each other."""

from copy import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from eigenscope import cli
from eigenscope.callbacks import CVLossSchedule
from eigenscope.lightning_modules import spectral_vae
from eigenscope.nn.autoencoders import simplex_vae
from eigenscope.results import read_scoreboard
from eigenscope.results.run_metadata import RunMetadata

pytestmark = pytest.mark.xdist_group("ddp")  # one pool for all, with --dist loadgroup
CONFIGS = Path(__file__).parents[1] / "configs"
DDP = ["--trainer.strategy=ddp", "--trainer.devices=2"]
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
NET = "--model.init_args.net.init_args"
FEW_TYPES = [
    "--data.init_args.image_size=16",
    "--data.init_args.samples_per_epoch=160",
    "--data.init_args.val_samples_per_type=3",
    "--data.init_args.batch_size=32",
    "--data.init_args.types=[gaussian, cauchy, pink, uniform, brown]",  # 15 validation images
]
ARGUMENTS = {
    "demo_svd": [
        f"{NET}.width=16",
        f"{NET}.num_heads=2",
        # singular vectors of nearly equal values magnify rounding, which differs with the size of a batch
        f"{NET}.taps.features=gram_diagonal",
        f"{NET}.dropout=0.0",
        "--data.init_args.train_size=202",
        "--data.init_args.test_size=101",  # not a multiple of the ranks: no image may be counted twice
        "--data.init_args.batch_size=50",
        "--data.init_args.augmentation=crop_flip",
    ],
    "svae_noise_small": [
        *FEW_TYPES,
        "--data.init_args.curriculum={epochs: [1], tiers: [[gaussian, cauchy, pink], [uniform, brown]]}",
    ],
    "vae_noise": [
        *FEW_TYPES,
        f"{NET}.hidden=32",
        f"{NET}.bottleneck=32",
        "--model.init_args.warmup_steps=2",
        # those of the CV are of matrices of a rank's own choice
        "--trainer.callbacks=[{class_path: EpochTable, init_args: {monitor: {name: val/fvu, mode: min}}}, "
        "{class_path: Scoreboard, init_args: {monitor: {name: val/fvu, mode: min}}}, {class_path: ResumeCheckpoint}]",
    ],
    "batteries_small": [
        "--data.init_args.image_size=16",
        "--data.init_args.samples_per_epoch=96",
        "--data.init_args.val_samples_per_type=1",
        "--data.init_args.batch_size=24",
        "--model.init_args.images_per_battery=3",
    ],
    "recall": [
        f"{NET}.width=16",
        "--data.init_args.samples_per_epoch=64",
        "--data.init_args.val_samples=15",
        "--data.init_args.batch_size=16",
        "--data.init_args.shorter=[{epochs: 1, context: 4, pairs: 2}]",
        "--data.init_args.task.context=32",
        "--data.init_args.task.pairs=8",
        "--data.init_args.task.queries=8",
    ],
}
LONG = ("vae_noise", "batteries_small")


def fit(name, arguments):
    """The figures at the end of a run, in the working directory."""
    run = cli.main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *arguments])
    return {key: float(value) for key, value in run.trainer.callback_metrics.items()}


def fit_both(name, tmp_path, monkeypatch, two_ranks, *more, optimizer=SGD):
    """Folders of a run of one process and of two, the checkpoints, and what the ranks printed."""
    arguments = [*optimizer, *COMMON, *ARGUMENTS[name], *more]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    fit(name, arguments)
    printed, two = fit_two(name, tmp_path / "two", monkeypatch, two_ranks, arguments)
    return checkpoint(tmp_path / "one", name), two, printed


def fit_two(name, folder, monkeypatch, two_ranks, arguments):
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    outcomes = two_ranks.run(fit, name, [*arguments, *DDP])
    first, second = (outcome.value for outcome in outcomes)
    assert first.keys() >= second.keys()
    for key, value in second.items():
        if "loss_step" not in key and not key.startswith("cv_"):
            assert value == pytest.approx(first[key], rel=1e-6, nan_ok=True), key
    return [outcome.printed for outcome in outcomes], checkpoint(folder, name)


def checkpoint(folder, name):
    (path,) = folder.glob(f"runs/{name}/version_0/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


def epochs(folder, name):
    return RunMetadata.load(folder / "runs" / name / "version_0").result.epochs


def _named(name, message):
    return f"{name}: {message}"


@pytest.mark.parametrize(
    "name", ["demo_svd", "svae_noise_small", "recall", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]
)
def test_two_ranks_equal_one_at_the_same_global_batch(name, tmp_path, monkeypatch, two_ranks):
    one, two, printed = fit_both(name, tmp_path, monkeypatch, two_ranks)
    optimizer_steps = one["global_step"]
    assert optimizer_steps == two["global_step"] >= 8
    for key, value in one["state_dict"].items():
        if "untrained" not in key:  # of the first batch of a rank
            torch.testing.assert_close(two["state_dict"][key], value, atol=2e-6, rtol=1e-5, msg=partial(_named, key))
    for a, b in zip(*(epochs(tmp_path / folder, name) for folder in ("one", "two")), strict=True):
        compared = [key for key in a.metrics if not key.startswith(("geometry", "train/loss_step"))]
        assert len(compared) >= 4
        for key in compared:
            assert b.metrics[key] == pytest.approx(a.metrics[key], rel=2e-6, abs=1e-7, nan_ok=True), key
    assert "epoch" in printed[0]
    assert "epoch" not in printed[1]  # tables are rank zero's
    assert len(read_scoreboard(tmp_path / "two" / "runs" / "scoreboard.csv")) == 1


def test_two_ranks_equal_one_with_matrices_preconditioned(tmp_path, monkeypatch, two_ranks):
    split = "--model.init_args.optimizer.init_args"
    arguments = [
        *("--config", str(CONFIGS / "optimizer" / "rekls.yaml")),
        "--model.init_args.lr_scheduler=null",
        # A factor of a long matrix is singular at first, and any basis of its kernel is an eigenbasis: square ones
        f"{NET}.mlp_ratio=1.0",
        f"{split}.exclude=[head.*, '*qkv*']",
        # where eps is small Adam makes steps of full size out of rounding
        f"{split}.lr=1e-2",
        f"{split}.matrix.init_args.eps=1e-2",
        f"{split}.other.init_args.eps=1e-2",
    ]
    one, two, printed = fit_both("demo_svd", tmp_path, monkeypatch, two_ranks, *arguments, optimizer=[])
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, atol=1e-5, rtol=1e-4, msg=partial(_named, key))
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two)]
    for index, state in states[0].items():
        for name in ("L", "R") if "L" in state else ():
            assert torch.dist(states[1][index][name], state[name]) < 1e-4 * state[name].norm()
    assert sum("L" in state for state in states[0].values()) == 4 * 3
    assert [text.count("biases, gains") for text in printed] == [1, 0]  # the routing table


def test_two_ranks_add_up_what_compressed_keys_do(tmp_path, monkeypatch, two_ranks):
    overlay = ["--config", str(CONFIGS / "callbacks" / "kv_check.yaml")]
    small = ["--data.init_args.train_size=50", "--data.init_args.test_size=51", "--trainer.max_epochs=1"]
    arguments = [*overlay, *SGD, *COMMON, *ARGUMENTS["demo_svd"], *small]
    printed, _ = fit_two("demo_svd", tmp_path, monkeypatch, two_ranks, arguments)
    assert [text.count("Compressed keys and values") for text in printed] == [1, 0]
    # One rank has batches of 25 and of 1, which is measured; the other has one of 25, of whose 8 samples half are.
    assert f" {1 + 4} predictions" in printed[0]
    assert "nan" not in printed[0].partition("Compressed keys and values")[2].partition("Scoreboard")[0]


def test_two_ranks_agree_on_the_cv_policy(tmp_path, monkeypatch, two_ranks):
    overlay = ["--config", str(CONFIGS / "cv" / "align_hand.yaml")]
    arguments = [*overlay, *SGD, *COMMON, *ARGUMENTS["svae_noise_small"]]
    monkeypatch.chdir(tmp_path)
    first, second = (outcome.value for outcome in two_ranks.run(cv_policy, [*arguments, *DDP]))
    assert first == second
    assert 0 < first["ema"] != first["cv"] > 0
    last = epochs(tmp_path, "svae_noise_small")[-1]
    assert last.metrics["cv_M/ema"] == pytest.approx(first["ema"])
    assert checkpoint(tmp_path, "svae_noise_small")["callbacks"]["CVLossSchedule['M']"]["point_sets"]["M"] == first


def cv_policy(arguments):
    run = cli.main(["fit", "--config", str(CONFIGS / "svae_noise_small.yaml"), *arguments])
    (schedule,) = (callback for callback in run.trainer.callbacks if isinstance(callback, CVLossSchedule))
    return schedule.state_dict()["point_sets"]["M"]


def test_two_ranks_draw_different_dropout(tmp_path, monkeypatch, two_ranks):
    monkeypatch.chdir(tmp_path)
    arguments = [*SGD, *COMMON, *ARGUMENTS["demo_svd"], f"{NET}.dropout=0.1", "--trainer.max_epochs=1"]
    first, second = (outcome.value for outcome in two_ranks.run(dropout_masks, [*arguments, *DDP]))
    assert len(first) == len(second) == 4 > len(set(first) & set(second)) == 0
    assert len(set(first)) == len(set(second)) == 4


def dropout_masks(arguments):
    """What dropout left of the embedded tokens of ones in each step, as bytes."""
    masks = []
    whole = F.dropout

    def recorded(values, p=0.5, training=True, inplace=False):
        if training and values.ndim == 3 and values.shape[1:] == (65, 16):
            kept = whole(torch.ones_like(values), p, training)
            masks.append(kept.detach().bool().numpy().tobytes())
            return values * kept
        return whole(values, p, training, inplace)

    F.dropout = recorded
    try:
        run = cli.main(["fit", "--config", str(CONFIGS / "demo_svd.yaml"), *arguments])
    finally:
        F.dropout = whole
    return masks[:: len(masks) // run.trainer.global_step]


def test_latents_do_not_repeat_between_ranks_and_steps(tmp_path, monkeypatch, two_ranks):
    monkeypatch.chdir(tmp_path)
    few = [
        "--data.init_args.samples_per_epoch=64",
        "--data.init_args.batch_size=8",
        "--trainer.accumulate_grad_batches=2",
    ]
    arguments = [*SGD, *COMMON, *ARGUMENTS["vae_noise"], *few, "--trainer.num_sanity_val_steps=0"]
    ranks = [outcome.value for outcome in two_ranks.run(latent_draws, [*arguments, *DDP])]
    whole = latent_draws(arguments)
    samples = [image.numpy().tobytes() for rank in ranks for batch in rank["train"] for image in batch]
    assert len(set(samples)) == len(samples) == 2 * 64
    for batch, first, second in zip(whole["train"], *(rank["train"] for rank in ranks), strict=True):
        assert torch.equal(batch[0::2], first)
        assert torch.equal(batch[1::2], second)
    first, second, held_out = (torch.cat(found["val"]) for found in (*ranks, whole))
    assert len(held_out) == 2 * 15  # the same in both epochs, as the images are
    assert torch.equal(held_out[:15], held_out[15:])
    assert len({image.numpy().tobytes() for image in held_out}) == 15
    assert torch.equal(held_out[0:15:2], first[:8])
    assert torch.equal(held_out[1:15:2], second[:7])


def latent_draws(arguments):
    """ε of the batches, (B, L, slots, D) each, of training and of validation."""
    draws = {"train": [], "val": []}
    whole = simplex_vae.reparameterise
    places = {"train": simplex_vae, "val": spectral_vae}

    def recorder(stage):
        def recorded(mu, log_variance, generator=None):
            draws[stage].append(whole(torch.zeros_like(mu), torch.zeros_like(mu), copy(generator)))
            return whole(mu, log_variance, generator)

        return recorded

    for stage, module in places.items():
        module.reparameterise = recorder(stage)
    try:
        cli.main(["fit", "--config", str(CONFIGS / "vae_noise.yaml"), *arguments])
    finally:
        for module in places.values():
            module.reparameterise = whole
    return {stage: [draw.detach() for draw in found] for stage, found in draws.items()}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_of_two_ranks_goes_on_with_one(tmp_path, monkeypatch, two_ranks):
    arguments = [*SGD, *COMMON, *ARGUMENTS["vae_noise"]]
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    fit("vae_noise", arguments)
    fit_two("vae_noise", tmp_path / "parts", monkeypatch, two_ranks, [*arguments, "--trainer.max_epochs=1"])
    fit("vae_noise", [*arguments, "--ckpt_path=runs/vae_noise/version_0/checkpoints/last.ckpt"])
    whole, parts = (checkpoint(tmp_path / folder, "vae_noise") for folder in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 10
    for key, value in whole["state_dict"].items():
        if "untrained" not in key:
            torch.testing.assert_close(parts["state_dict"][key], value, atol=2e-6, rtol=1e-5, msg=partial(_named, key))
