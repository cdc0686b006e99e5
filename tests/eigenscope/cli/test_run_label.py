"""What a run is called beside its experiment's name, as a command line makes it."""

from pathlib import Path

import pytest

from eigenscope import cli

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO, NOISE = (["--config", str(CONFIGS / f"{name}.yaml")] for name in ("demo", "svae_noise_small"))
CV, MUON = (["--config", str(CONFIGS / f"{name}.yaml")] for name in ("cv/align_hand", "optimizer/muon"))
BORING = "lightning.pytorch.demos.boring_classes.Boring"
OPTIMIZER = "--model.init_args.optimizer"

UNIMPORTANT = ["--data.init_args.num_workers=0", "--trainer.callbacks+=DeviceStatsMonitor", "--trainer.max_epochs=8"]


@pytest.mark.parametrize(
    ("args", "label"),
    [
        (NOISE, []),
        (
            [*NOISE, *CV, "--data.init_args.clamp=null", "--seed_everything=1", f"{OPTIMIZER}.init_args.lr", "2e-3"],
            ["+ cv/align_hand", "seed=1", "lr=2e-3", "clamp=null"],
        ),
        # what does not matter, and what is as the file has it
        (
            [*DEMO, "--trainer.accelerator=cpu", *UNIMPORTANT, f"{OPTIMIZER}.init_args.lr=1e-3"],
            [],
        ),
        # names that two settings have
        (
            [*DEMO, *MUON, f"{OPTIMIZER}.init_args.matrix.init_args.lr=0.02", "--data.init_args.seed=3"],
            ["+ optimizer/muon", "matrix.lr=0.02", "data.seed=3"],
        ),
        # arguments of another class, which the file knows nothing of
        ([*NOISE, f"{OPTIMIZER}=SGD", f"{OPTIMIZER}.init_args.momentum=0.9"], ["optimizer=SGD", "momentum=0.9"]),
        ([*DEMO, "--trainer.limit_val_batches=1", "--config={trainer: {max_epochs: 2}}"], ["max_epochs=2", "limit_"]),
        (
            [*NOISE, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.init_args.monitor=val/mse"],
            ["+ EarlyStopping", "monitor=val/mse"],
        ),
        # no file, or one that is no whole configuration
        (
            [f"--model={BORING}Model", "--trainer.max_epochs=2", f"--data={BORING}DataModule"],
            ["model=", "max_epochs=2", "data="],
        ),
        ([*NOISE, "--label", "third try", "--data.init_args.clamp=null"], ["third try", "clamp=null"]),
    ],
)
def test_a_label_is_what_differs_from_the_first_file(args, label):
    found = cli.resolve(args)["label"]
    assert len(found) == len(label)
    assert all(part.startswith(start) for part, start in zip(found, label, strict=True)), found


def test_a_file_of_one_own_is_named_and_one_of_a_run_keeps_the_label_of_the_run(tmp_path):
    demo = Path(DEMO[1]).read_text()
    (tmp_path / "mine.yaml").write_text(demo)
    (tmp_path / "config.yaml").write_text(f"{demo}label: [lr=1e-2, + cv/align_hand]\n")
    assert cli.resolve(["--config", str(tmp_path / "mine.yaml")])["label"] == ["mine.yaml"]
    args = ["--config", str(tmp_path / "config.yaml")]
    assert cli.resolve(args)["label"] == ["lr=1e-2", "+ cv/align_hand"]
    args += [f"{OPTIMIZER}.init_args.lr=5e-3", "--trainer.max_epochs=9"]
    assert cli.resolve(args)["label"] == ["+ cv/align_hand", "lr=5e-3", "max_epochs=9"]
