"""The spectral autoencoder as a user runs it."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from eigenscope import cli
from eigenscope.callbacks import NonFiniteError
from eigenscope.cli import planned_run
from eigenscope.lightning_modules import SpectralAutoencoderModule
from eigenscope.results import RunMetadata, read_scoreboard

CONFIGS = Path(__file__).parents[1] / "configs"
SVAE = str(CONFIGS / "svae_noise_small.yaml")
CV = str(CONFIGS / "cv" / "align_hand.yaml")
NET = "--model.init_args.net.init_args"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def svae(*more):
    sizes = ["image_size=8", "samples_per_epoch=64", "val_samples_per_type=1", "batch_size=16", "num_workers=0"]
    arguments = [f"--data.init_args.{size}" for size in sizes] + ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    return ["fit", "--config", SVAE, *arguments, "--trainer.enable_progress_bar=false", *more]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.init_args.image_size=10"], "image size must be a multiple of patch_size 4, got 10×10"),
        ([f"{NET}.dim=6", f"{NET}.num_heads=4"], "dim must be a multiple of num_heads, got dim 6 and 4 heads"),
        (["--config", CV, f"{NET}.num_points=4"], "the CV of 'M' needs at least 5 points in 4 dimensions, it has 4 in"),
        (["--config", CV, f"{NET}.num_points=8", f"{NET}.dim=2"], "it has 8 in 2"),
        (["--data.init_args.types=[gaussian, gauss]"], "noise type is 'gauss'; it must be one of gaussian, uniform,"),
        (
            ["--data.init_args.curriculum={epochs: [-1, 2, 3, 4]}"],
            "epochs of a curriculum must be at least 0, got [-1,",
        ),
        (
            ["--trainer.callbacks+=CVLossSchedule", "--trainer.callbacks.point_sets={Q: {}}"],
            "no point set 'Q'; there are: M",
        ),
        (
            [f"{NET}.hidden=2", f"{NET}.depth=0", "--model.init_args.optimizer.init_args.lr=1e20"],
            "step 1: the first tensor that is not finite is",
        ),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py", *svae(*arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.script()
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_the_small_autoencoder_learns_what_can_be_compressed(tmp_path):
    arguments = ["fit", "--config", SVAE, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    arguments += ["--data.init_args.image_size=16", "--data.init_args.num_workers=0"]
    run = cli.main([*arguments, "--data.init_args.val_samples_per_type=4", "--trainer.enable_progress_bar=false"])
    figures = run.trainer.callback_metrics
    assert len([name for name in figures if name.startswith("val_mse/")]) == 16
    for name in ("pink", "brown", "block", "gradient", "checkerboard"):
        assert figures[f"val_mse/{name}"] < 0.5 * figures[f"val_power/{name}"], name
    assert abs(figures["geometry_M/cv_untrained"] - figures["geometry_M/cv_random"]) < 0.1


def test_compare_says_which_runs_were_stopped_and_goes_on(tmp_path, capfd, monkeypatch):
    def run(command, is_ready):  # without a process of its own
        try:
            cli.main(command[3:])
        except (NonFiniteError, torch.linalg.LinAlgError):
            return 1, None
        return 0, None

    monkeypatch.setattr(planned_run, "run_child", run)
    wild = tmp_path / "wild.yaml"
    wild.write_text("model: {init_args: {optimizer: {init_args: {lr: 1.0e+20}}}}")
    arms = ["--config", SVAE, str(wild), "--config", SVAE, "--dir", str(tmp_path / "study")]
    sizes = [*svae()[3:], f"{NET}.hidden=8", f"{NET}.depth=0"]
    (summary,) = cli.main(["compare", *arms, *sizes])
    printed = capfd.readouterr().out
    assert summary.name == "svae_noise_small"
    (line,) = [line for line in printed.splitlines() if re.match(r"svae_noise_small\+wild +0 +1 ", line)]
    assert re.match(r"svae_noise_small\+wild +0 +1 +the first tensor that is not finite is '", line)
    assert re.search(r"^lr +1e20 +1e-3$", printed, re.MULTILINE)
    cli.main(["compare", *arms, *sizes])
    assert "svae_noise_small+wild seed 0: already stopped at step 1" in capfd.readouterr().out


def test_runs_of_one_experiment_are_told_apart(tmp_path, capsys, hparams_page):
    """On the scoreboard, whose rows on other data stand apart, in the table of epochs, the record and HPARAMS."""
    sizes = [f"{NET}.hidden=8", f"{NET}.depth=0"]
    lines = {"version_0": [], "version_1": ["--config", CV], "version_2": ["--data.init_args.clamp=null"]}
    for line in lines.values():
        cli.main(svae(*sizes, *line))
    *_, printed = capsys.readouterr().out.partition("Scoreboard (runs/scoreboard.csv)")
    printed = printed.rpartition("Scoreboard (runs/scoreboard.csv)")[2]
    common, clamped, others, *_, own = printed.strip().split("\n\n")
    assert common.startswith("In every row: hidden=8, depth=0, image_size=8, ")
    assert re.search(r"^→ svae_noise_small clamp=null +0 .* version_2 ", clamped, re.MULTILINE)
    assert {line.strip().partition("  ")[0] for line in others.splitlines()[3:]} == {
        "svae_noise_small",
        "svae_noise_small + cv/align_hand",
    }
    for board in (clamped, others):
        assert re.match(r"HeavyTailedNoiseDataModule, train \w+ \(64 samples\), val .*; protocol 16 types\n", board)
    assert re.match(r"This run: svae_noise_small hidden=8, .* clamp=null, .*, in runs/svae_noise_small/version_2$", own)
    labels = [row["label"] for row in read_scoreboard(tmp_path / "runs" / "scoreboard.csv")]
    assert len(set(labels)) == 3
    for version, label in zip(lines, labels, strict=True):
        folder = tmp_path / "runs" / "svae_noise_small" / version
        assert "; ".join(RunMetadata.load(folder).result.label) == label
        assert yaml.safe_load((folder / "config.yaml").read_text())["label"] == label.split("; ")

    rows, (columns, _) = hparams_page(tmp_path / "runs")
    assert columns[:2] == ["Differs by", "clamp"]
    assert [(row["Differs by"], row.get("clamp")) for row, _ in rows] == [
        ("–", 4.0),
        ("+ cv/align_hand", 4.0),
        ("clamp=null", None),
    ]
    assert [type(rows[0][0][name]) for name in ("seed", "lr", "hidden", "samples_per_epoch")] == [float] * 4


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_of_the_autoencoder_can_be_used_again(tmp_path):
    first = cli.main(svae())
    folder = Path(first.trainer.log_dir)
    last = str(folder / "checkpoints" / "last.ckpt")
    rebuilt = SpectralAutoencoderModule.load_from_checkpoint(last, weights_only=True)
    for name, value in first.model.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value), name
    for config in (str(folder / "config.yaml"), SVAE):
        arguments = ["--config", config, *svae()[3:], "--ckpt_path", last, "--trainer.logger=false"]
        validated = cli.main(["validate", *arguments])
        assert validated.trainer.callback_metrics["val/mse"] == first.trainer.callback_metrics["val/mse"]
        name = "geometry_M/cv_untrained"
        assert validated.trainer.callback_metrics[name] == first.trainer.callback_metrics[name]
    predicted = cli.main(["predict", *arguments])
    assert predicted.trainer.predict_loop.predictions[0]["reconstructions"].shape == (16, 3, 8, 8)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.long
def test_a_resumed_autoencoder_ends_as_if_it_had_not_stopped(tmp_path):
    whole = cli.main(svae("--config", CV, "--trainer.max_epochs=2"))
    length = "--model.init_args.lr_scheduler.init_args.T_max=2"  # of the whole run, of which this is a part
    part = cli.main(svae("--config", CV, length))
    last = str(Path(part.trainer.log_dir) / "checkpoints" / "last.ckpt")
    resumed = cli.main(svae("--config", CV, "--trainer.max_epochs=2", "--ckpt_path", last))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
