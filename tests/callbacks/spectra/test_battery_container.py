from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eigenscope import cli
from eigenscope.callbacks import BatteryContainer
from eigenscope.datamodules import HeavyTailedNoiseDataModule
from eigenscope.lightning_modules import BatteryModule, SpectralAutoencoderModule
from eigenscope.nn import BatteryArray, PatchSVAE, cross_evaluate, load_batteries
from eigenscope.noise import NOISE_TYPES

CONFIG = Path(__file__).parents[3] / "configs" / "batteries_small.yaml"
SMALL = {"num_points": 8, "dim": 4, "patch_size": 4, "hidden": 8, "depth": 0}
NET = "--model.init_args.net.init_args"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small(*more, epochs=2):
    sizes = [f"{NET}.num_batteries=12", f"{NET}.hidden=8", f"{NET}.depth=0", f"{NET}.num_points=8"]
    sizes += [
        "--data.init_args.image_size=8",
        "--data.init_args.samples_per_epoch=128",
        f"--trainer.max_epochs={epochs}",
    ]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    return ["fit", "--config", str(CONFIG), *sizes, *quiet, "--data.init_args.num_workers=0", *more]


def images_of(log_dir):
    events = EventAccumulator(str(log_dir), size_guidance={"images": 0}).Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def test_the_container_of_a_run_holds_its_batteries_and_what_is_known_of_them(capsys):
    run = cli.main(small())
    log_dir = Path(run.trainer.log_dir)
    array, entries = load_batteries(log_dir / "batteries.safetensors")
    for name, value in run.model.net.state_dict().items():
        assert torch.equal(array.state_dict()[name], value), name
    assert [entry.mixture for entry in entries] == list(run.model.mixtures)
    assert [entry.steps for entry in entries] == run.model.steps.tolist()
    assert max(entry.steps for entry in entries) == 4
    batches = list(run.datamodule.val_dataloader())
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    cross = cross_evaluate(array, images, labels, 16)
    scores = torch.tensor([[entry.scores[name] for name in NOISE_TYPES] for entry in entries], dtype=torch.float64)
    torch.testing.assert_close(scores, cross, rtol=1e-5, atol=1e-7)
    printed = capsys.readouterr().out
    assert f"Batteries ({log_dir / 'batteries.safetensors'})" in printed
    assert "gaussian + uniform + uniform_scaled" not in printed
    best = int(cross[:, NOISE_TYPES.index("block")].argmin())
    (line,) = [line.split() for line in printed.splitlines() if line.startswith("block ")]
    assert line[1] == str(best)
    assert images_of(log_dir) == {"batteries": [4]}


def test_a_resumed_run_goes_on_counting_steps_and_ends_the_same():
    whole = cli.main(small())
    schedule = "--model.init_args.lr_scheduler.init_args.T_max=2"  # of the whole run, of which this is a part
    part = cli.main(small("--trainer.limit_val_batches=1", schedule, epochs=1))
    rows = part.model.steps.clone()
    last = str(Path(part.trainer.log_dir) / "checkpoints" / "last.ckpt")
    resumed = cli.main(small("--ckpt_path", last, "--trainer.limit_val_batches=1"))
    assert (resumed.model.steps > rows).any()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    rebuilt = BatteryModule.load_from_checkpoint(last, weights_only=True)
    assert rebuilt.mixtures == whole.model.mixtures


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    cli.main(small("--trainer.fast_dev_run=true"))
    fit(BatteryContainer(str(tmp_path / "a.safetensors")), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.safetensors"))


def fit(callback, tested=None, **options):
    torch.manual_seed(0)
    tested = tested or BatteryModule(BatteryArray(3, **SMALL), partial(torch.optim.Adam, lr=1e-3))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], **quiet, **{"logger": False} | options)
    data = HeavyTailedNoiseDataModule(
        image_size=8, samples_per_epoch=32, val_samples_per_type=1, num_workers=0, batch_size=16
    )
    trainer.fit(tested, datamodule=data)
    return tested


def test_a_path_of_ones_own_needs_no_logs(tmp_path, capsys):
    path = tmp_path / "deep" / "mine.safetensors"
    fit(BatteryContainer(str(path)))
    assert len(load_batteries(path)[1]) == 3
    assert f"Batteries ({path})" in capsys.readouterr().out
    path.unlink()
    fit(BatteryContainer())
    assert "Batteries (not written)" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.safetensors"))


def test_without_validation_there_are_no_scores(tmp_path, capsys):
    fit(BatteryContainer(), logger=CSVLogger(tmp_path, name="", version=""), limit_val_batches=0)
    _, entries = load_batteries(tmp_path / "batteries.safetensors")
    assert [entry.scores for entry in entries] == [{}, {}, {}]
    assert "Batteries" not in capsys.readouterr().out


def test_scores_that_are_no_numbers_are_left_out(tmp_path):
    path = tmp_path / "some.safetensors"
    tested = BatteryModule(BatteryArray(1, **SMALL), partial(torch.optim.Adam, lr=1e-3))
    fit(BatteryContainer(str(path)), tested, limit_val_batches=0)
    tested.cross_scores = torch.full((1, 16), torch.nan)
    tested.cross_scores[0, 2] = 0.5
    tested.trainer.callbacks[0].on_fit_end(tested.trainer, tested)
    assert load_batteries(path)[1][0].scores == {NOISE_TYPES[2]: 0.5}


def test_it_needs_batteries():
    other = SpectralAutoencoderModule(PatchSVAE(**SMALL), partial(torch.optim.Adam, lr=1e-3))
    with pytest.raises(ValueError, match="needs a module that trains batteries, not SpectralAutoencoderModule"):
        fit(BatteryContainer(), other)


def test_the_configurations_say_what_they_should():
    for name, count in (("batteries", 256), ("batteries_small", 32)):
        config = yaml.safe_load(CONFIG.with_name(f"{name}.yaml").read_text())
        model = config["model"]["init_args"]
        assert model["net"]["init_args"]["num_batteries"] == count
        assert model["lr_scheduler"] == {"class_path": "eigenscope.optim.CosineAnnealingLR"}  # which follows the run
        assert config["data"]["init_args"]["clamp"] == 4.0
