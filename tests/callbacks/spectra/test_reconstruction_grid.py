import io
import logging
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

import eigenscope.callbacks.spectra.reconstruction_grid as grid_module
from eigenscope.callbacks import CVLossSchedule, ReconstructionGrid
from eigenscope.geometry import CVPolicy, expected_cv
from eigenscope.lightning_modules import SpectralAutoencoderModule
from eigenscope.nn import PatchSVAE

TAGS = {"reconstructions", "spectrum_M", "cv_histogram_M"}


class Images(LightningDataModule):
    """Eight random images of four labels, each image all equal to its number / 8 but for noise."""

    label_names = ("zero", "one", "two", "three")

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.arange(8).reshape(8, 1, 1, 1) / 8 + 0.1 * torch.randn(8, 3, 8, 8, generator=generator)
        self.labels = torch.tensor([2, 2, 0, 0, 3, 1, 2, 1])

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=4)

    def val_dataloader(self):
        return self.train_dataloader()


def module(**options):
    torch.manual_seed(0)
    net = PatchSVAE(**{"num_points": 8, "dim": 4, "patch_size": 4, "hidden": 8, "depth": 1} | options)
    return SpectralAutoencoderModule(net, partial(torch.optim.SGD, lr=0.1))


def trainer(tmp_path, *callbacks, logger=None, **options):
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=logger or TensorBoardLogger(tmp_path, name="", version=""),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 1, "enable_checkpointing": False} | options,
    )


def images_in(folder):
    """Tag to {step: picture (H, W, 3)}."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {
        tag: {
            event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
            for event in events.Images(tag)
        }
        for tag in events.Tags()["images"]
    }


@pytest.fixture
def figures(monkeypatch):
    """What the figure functions were handed, in order."""
    calls = []

    def watch(name):
        function = getattr(grid_module, name)

        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return function(*args, **kwargs)

        monkeypatch.setattr(grid_module, name, call)

    for name in ("reconstruction_figure", "spectrum_figure", "cv_histogram"):
        watch(name)
    return calls


def given(figures, name):
    return [(args, kwargs) for called, args, kwargs in figures if called == name]


def test_figures_reach_tensorboard(tmp_path):
    fit = trainer(tmp_path, ReconstructionGrid(every_n_epochs=2), max_epochs=5)
    fit.fit(module(), datamodule=Images())
    written = images_in(tmp_path)
    assert set(written) == TAGS
    for pictures in written.values():
        assert set(pictures) == {4, 8}  # two steps an epoch
        for picture in pictures.values():
            assert picture.shape[0] > 300
            assert picture.std() > 10


def test_first_image_of_each_label(tmp_path, figures, monkeypatch):
    data = Images()
    monkeypatch.setattr(grid_module, "_LABELS", 3)
    fit = trainer(tmp_path, ReconstructionGrid(), max_epochs=2)
    fit.fit(module(), datamodule=data)
    drawn = given(figures, "reconstruction_figure")
    assert len(drawn) == 2
    for (images, _, names), _ in drawn:  # the labels 2, 0 and 3 come first
        torch.testing.assert_close(images, data.images[[2, 0, 4]])
        assert names == ["zero", "two", "three"]


def test_labels_without_names(tmp_path, figures):
    data = Images()
    trainer(tmp_path, ReconstructionGrid()).fit(module(), data.train_dataloader(), data.val_dataloader())
    (((_, _, names), _),) = given(figures, "reconstruction_figure")
    assert names == ["class 0", "class 1", "class 2", "class 3"]


def test_figures_hold_what_the_network_makes(tmp_path, figures):
    data, trained = Images(), module()
    target = CVPolicy(target=0.5)
    trainer(tmp_path, ReconstructionGrid(), CVLossSchedule({"M": target})).fit(trained, datamodule=data)
    (((images, reconstructions, _), _),) = given(figures, "reconstruction_figure")
    with torch.no_grad():
        expected, point_sets = trained.eval().autoencode(images)
    torch.testing.assert_close(reconstructions, expected)
    (((spectra,), known),) = given(figures, "spectrum_figure")
    torch.testing.assert_close(spectra, torch.linalg.svdvals(point_sets["M"].flatten(0, 1)))
    with torch.no_grad():
        before = module().eval().autoencode(data.images[[2, 5, 0, 4]])[1]["M"]
    torch.testing.assert_close(known["untrained"], torch.linalg.svdvals(before.flatten(0, 1)))
    assert (known["random"].square().sum(1) - 8).abs().max() < 1e-4
    (((cvs,), lines),) = given(figures, "cv_histogram")
    assert cvs.shape == (16,)
    assert lines["target"] == 0.5
    assert lines["random"] == expected_cv(4)
    assert 0.3 < lines["untrained"] < 1.5


def test_the_baseline_goes_with_the_checkpoint(tmp_path, figures):
    first = ReconstructionGrid()
    fit = trainer(tmp_path, first)
    fit.fit(module(), datamodule=Images())
    fit.save_checkpoint(tmp_path / "run.ckpt")
    untrained = first.state_dict()["untrained"]["M"]
    second = ReconstructionGrid()
    trainer(tmp_path / "resumed", second, max_epochs=2).fit(
        module(), datamodule=Images(), ckpt_path=tmp_path / "run.ckpt", weights_only=True
    )
    for name, values in second.state_dict()["untrained"]["M"].items():
        torch.testing.assert_close(values, untrained[name], rtol=0, atol=0)
    torch.testing.assert_close(given(figures, "spectrum_figure")[-1][1]["untrained"], untrained["singular_values"])
    assert set(images_in(tmp_path / "resumed")["spectrum_M"]) == {4}


def test_without_sanity_check_there_is_no_baseline(tmp_path, figures):
    grid = ReconstructionGrid()
    grid.load_state_dict({"untrained": {"M": {"singular_values": torch.ones(2, 4), "cvs": torch.ones(2)}}})
    trainer(tmp_path, grid, num_sanity_val_steps=0).fit(module(), datamodule=Images())
    assert [known["untrained"] for _, _, known in figures if "untrained" in known] == [None, None]
    assert grid.state_dict() == {"untrained": {}}


def test_validation_alone_draws_and_takes_no_baseline(tmp_path):
    grid = ReconstructionGrid(every_n_epochs=7)
    trainer(tmp_path, grid).validate(module(), datamodule=Images(), verbose=False)
    assert set(images_in(tmp_path)) == TAGS
    assert grid.state_dict() == {"untrained": {}}


def test_a_sector_without_cv_is_left_out(tmp_path):
    trainer(tmp_path, ReconstructionGrid()).fit(module(dim=2), datamodule=Images())
    assert set(images_in(tmp_path)) == {"reconstructions"}


def test_points_that_are_not_finite_are_counted(tmp_path, figures):
    class Broken(LightningModule):
        def autoencode(self, images):
            points = F.normalize(torch.randn(len(images), 8, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
            points[0, 0, 0] = torch.nan
            return torch.full_like(images, torch.nan), {"M": points}

        def validation_step(self, batch, batch_idx):
            pass

    trainer(tmp_path, ReconstructionGrid()).validate(Broken(), datamodule=Images(), verbose=False)
    assert set(images_in(tmp_path)) == TAGS
    (((spectra,), _),) = given(figures, "spectrum_figure")
    assert spectra.isfinite().all(1).tolist() == [False, True, True, True]


def test_precision_is_the_runs(tmp_path, figures):
    trainer(tmp_path, ReconstructionGrid(), precision="bf16-mixed").fit(module(), datamodule=Images())
    (((_, reconstructions, _), _),) = given(figures, "reconstruction_figure")
    assert reconstructions.dtype == torch.bfloat16


def test_without_tensorboard_it_says_so_once(tmp_path, caplog, figures):
    grid = ReconstructionGrid()
    with caplog.at_level(logging.INFO):
        run = trainer(tmp_path, grid, logger=CSVLogger(tmp_path))
        run.fit(module(), datamodule=Images())
        run.validate(module(), datamodule=Images(), verbose=False)
    assert sum("no TensorBoardLogger" in message for message in caplog.messages) == 1
    assert figures == []


def test_rank_zero_alone_works(tmp_path, monkeypatch, figures):
    run = trainer(tmp_path, ReconstructionGrid())
    monkeypatch.setattr(type(run), "is_global_zero", property(lambda self: False))
    run.fit(module(), datamodule=Images())
    assert figures == []


def test_a_module_that_reconstructs_nothing_is_refused(tmp_path):
    class Classifier(LightningModule):
        pass

    with pytest.raises(ValueError, match="Classifier"):
        ReconstructionGrid().setup(trainer(tmp_path), Classifier(), "fit")


def test_a_number_of_epochs_is_checked():
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        ReconstructionGrid(every_n_epochs=0)
