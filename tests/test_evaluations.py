"""``validate``, ``test`` and ``predict`` add to the record of the run whose checkpoint they evaluate."""

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

from eigenscope import cli
from eigenscope.callbacks import PredictionWriter
from eigenscope.cli.lightning_cli import ConfigurationError
from eigenscope.results import RunMetadata

CONFIGS = Path(__file__).parents[1] / "configs"
NET = "--model.init_args.net.init_args"
SMALL = [
    *(f"{NET}.{option}" for option in ("width=8", "depth=1", "num_heads=1")),
    *(f"--data.init_args.{option}" for option in ("train_size=40", "test_size=41", "batch_size=20", "num_workers=0")),
    "--data.init_args.image_size=16",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]
RUN = Path("runs/demo/version_0")
BEST = RUN / "checkpoints" / "best.ckpt"


def main(command, *arguments):
    return cli.main([command, "--config", str(CONFIGS / "demo.yaml"), *SMALL, *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluated"))
        main("fit")
        return Path.cwd()


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """A finished run in the working directory."""
    shutil.copytree(folder, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return RUN


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_evaluations_are_in_the_record_and_open_no_version(run, capsys):
    before = RunMetadata.load(run)
    main("validate", "--ckpt_path", str(run))
    predicted = main("predict", "--ckpt_path", str(BEST))
    main("predict", "--ckpt_path", str(BEST))
    shutil.move(run, "moved")
    main("test", "--ckpt_path", "moved/checkpoints/best.ckpt")
    record = RunMetadata.load(Path("moved"))
    validated, *_, tested = record.evaluations
    assert [each["subcommand"] for each in record.evaluations] == ["validate", "predict", "predict", "test"]
    assert validated["figures"] == pytest.approx(
        {name: value for name, value in before.result.epochs[-1].metrics.items() if name in validated["figures"]}
    )
    assert set(tested["figures"]) == {"test/loss", "test/acc", "test/acc5"}
    assert (tested["checkpoint"], tested["epoch"], tested["step"]) == ("moved/checkpoints/best.ckpt", 1, 2)
    assert tested["data"]["protocol"] == "test"
    assert tested["data"]["test"] == before.card["data"]["val"]
    assert {"torch", "lightning"} < set(tested["versions"])
    assert tested["seconds"] > 0
    assert (before.outcome, before.result) == (record.outcome, record.result)
    assert list(Path("runs/demo").iterdir()) == []
    files = [each["predictions"] for each in record.evaluations[1:3]]
    assert files == [str(RUN / "predictions" / name) for name in ("best.safetensors", "best-1.safetensors")]
    found = load_file("moved/predictions/best.safetensors")
    assert torch.equal(found["indices"], torch.arange(41))
    assert found["probabilities"].shape == found["logits"].shape == (41, 100)
    labels = torch.cat([labels for _, labels in predicted.datamodule.predict_dataloader()])
    assert torch.equal(found["labels"], labels)
    assert f"predict of {BEST} is recorded in {RUN / 'run.json'}." in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_what_cannot_be_recorded_is_said_and_the_figures_are_there(run, capsys):
    shutil.copy(BEST, "alone.ckpt")
    (run / "run.json").write_text("{")
    tested = main("test", "--ckpt_path", str(BEST))
    assert "test/acc" in tested.trainer.callback_metrics
    assert f"test could not be recorded in {run / 'run.json'}: " in capsys.readouterr().out
    shutil.rmtree(run)
    main("test", "--ckpt_path", "alone.ckpt")
    printed = capsys.readouterr().out
    assert "test/acc" in printed
    assert (
        "test is recorded nowhere: the run of checkpoint alone.ckpt is not known (it is in no run's folder)." in printed
    )
    assert not run.exists()


def test_weights_that_nobody_trained_are_named(run, capsys):
    main("validate")
    assert (
        "validate: no --ckpt_path is given, so these are the weights that the model begins with"
        in capsys.readouterr().out
    )
    weights = {
        name: value for name, value in torch.load(BEST, weights_only=True)["state_dict"].items() if "net." in name
    }
    save_file(weights, "weights.safetensors")
    warm = main("predict", "--warm_start", "weights.safetensors")
    printed = capsys.readouterr().out
    assert "Warm start from weights.safetensors" in printed
    assert "no --ckpt_path is given" not in printed
    assert f"The predictions are in {Path.cwd() / 'predictions' / 'warm_start.safetensors'}." in printed
    assert torch.equal(warm.model.net.positions, weights["net.positions"])


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("svae_noise_small", ["val_samples_per_type=2"], {"reconstructions": 4, "mse": 1, "labels": 1}),
        ("vae_noise", ["val_samples_per_type=2"], {"reconstructions": 4, "mse": 1, "labels": 1}),
        ("batteries_small", ["val_samples_per_type=2"], {"mse": 2, "labels": 1}),
        ("recall", ["val_samples=24"], {"tokens": 2, "labels": 2}),
        (
            "spike/soap_high",
            None,
            "GradientReplayModule has no predict_step and no forward",
        ),
    ],
)
def test_every_experiment_predicts_or_says_that_there_is_nothing(tmp_path, monkeypatch, config, options, expected):
    monkeypatch.chdir(tmp_path)
    arguments = ["predict", "--config", str(CONFIGS / f"{config}.yaml"), "--trainer.accelerator=cpu"]
    if options is None:
        with pytest.raises(ConfigurationError, match=expected):
            cli.main(arguments)
        return
    data = [f"--data.init_args.{option}" for option in (*options, "num_workers=0", "batch_size=8")]
    cli.main([*arguments, *data, "--trainer.enable_progress_bar=false"])
    found = load_file("predictions/untrained.safetensors")
    indices = found.pop("indices")
    assert torch.equal(indices, torch.arange(len(indices)))
    assert {name: value.ndim for name, value in found.items()} == expected
    assert {len(value) for value in found.values()} == {len(indices)}


class Doubles(LightningModule):
    """A stranger's module, which returns twice what it is given, and a pair where it is asked for two."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return 2 * batch[0] if dataloader_idx == 0 else (batch[0], {"no": 1})


def predicted_on(ranks):
    """A stranger's data of a size that ranks do not divide, which Lightning's sampler pads."""
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        callbacks=[writer := PredictionWriter(Path("predicted.safetensors"))],
    )
    trainer.predict(Doubles(), DataLoader(TensorDataset(torch.arange(7.0)), batch_size=2))
    return writer.saved is not None


@pytest.mark.filterwarnings("ignore:`predict` returned", "ignore:It is recommended")
def test_what_a_strangers_module_predicts_is_saved_or_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predicted_on(1)
    found = load_file("predicted.safetensors")
    assert torch.equal(found["predictions"], 2 * found["indices"].float())
    assert torch.equal(found["indices"], torch.arange(7))


@pytest.mark.xdist_group("ddp")
def test_two_ranks_save_each_sample_once(two_ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [outcome.value for outcome in two_ranks.run(predicted_on, 2)] == [True, False]
    found = load_file("predicted.safetensors")
    assert torch.equal(found["predictions"], 2 * found["indices"].float())
    assert torch.equal(found["indices"], torch.arange(7))
