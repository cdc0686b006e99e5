import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from eigenscope.geometry import expected_cv
from eigenscope.lightning_modules import SpectralAutoencoderModule
from eigenscope.lightning_modules.metrics import GroupedMean
from eigenscope.nn import PatchSVAE
from eigenscope.nn.autoencoders.reconstruction_errors import reconstruction_errors
from eigenscope.protocols import Autoencoding, HasPointSets, Traced

NAMES = ("gaussian", "uniform", "never seen")


def module(lr=0.0, **options):
    torch.manual_seed(0)
    net = PatchSVAE(num_points=12, dim=4, patch_size=4, hidden=24, depth=1)
    return SpectralAutoencoderModule(net, lambda named: torch.optim.Adam(named, lr=lr), **options)


def samples(count=10):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 8, 12, generator=generator)
    labels = torch.arange(count) % 2
    images[labels == 1] /= 3
    return images, labels


class Data(LightningDataModule):
    label_names = NAMES

    def train_dataloader(self):
        images, labels = samples()
        batches = list(zip(images.split(4), labels.split(4), strict=True))  # 4, 4 and 2: means over batches are wrong
        return DataLoader(batches, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def fit(tested, **options):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 1} | options,
    )
    trainer.fit(tested, datamodule=Data())
    return trainer


@pytest.mark.parametrize("loss", ["mse", "huber", "log_cosh"])
def test_figures_are_means_over_samples(loss):
    tested = module(loss=loss)  # the learning rate is 0: training and validation see the same network
    logged = fit(tested).callback_metrics
    images, labels = samples()
    with torch.no_grad():
        reconstructions, code = tested.net(images)
    error = (reconstructions - images).flatten(1)
    squares = error.square().mean(1)
    expected_loss = {
        "mse": squares,
        "huber": torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5).mean(1),
        "log_cosh": error.double().cosh().log().mean(1).float(),
    }[loss].mean()
    shift = (code.singular_values * (code.gains - 1)).abs().mean().float()
    for name, value in (
        ("train/loss", expected_loss),
        ("val/loss", expected_loss),
        ("train/mse", squares.mean()),
        ("val/mse", squares.mean()),
        ("val/spectral_shift", shift),
        ("val_mse/gaussian", squares[labels == 0].mean()),
        ("val_mse/uniform", squares[labels == 1].mean()),
        ("val_power/uniform", images[labels == 1].square().mean()),
    ):
        torch.testing.assert_close(logged[name], value, msg=name, rtol=1e-5, atol=1e-6)
    assert "val_mse/never seen" not in logged


def test_geometry_stands_beside_its_baselines():
    tested = module(lr=3e-2)
    logged = fit(tested, max_epochs=4).callback_metrics
    figures = ("S0", "SD", "S_ratio", "effective_rank", "cv")
    for name in figures:
        assert f"geometry_M/{name}_random" in logged
        assert logged[f"geometry_M/{name}"] != logged[f"geometry_M/{name}_untrained"]
    fresh = module()
    with torch.no_grad():
        S = torch.linalg.svdvals(fresh.net.encode(samples()[0][:4]).points).flatten(0, -2)
    torch.testing.assert_close(logged["geometry_M/S0_untrained"], S[:, 0].mean())
    torch.testing.assert_close(logged["geometry_M/SD_untrained"], S[:, -1].mean())
    points = torch.nn.functional.normalize(torch.randn(4000, 12, 4), dim=-1)
    random = torch.linalg.svdvals(points)
    torch.testing.assert_close(logged["geometry_M/S0_random"], random[:, 0].mean(), rtol=0.02, atol=0)
    assert float(logged["geometry_M/cv_random"]) == pytest.approx(expected_cv(4))
    assert 0 < logged["geometry_M/cv_standard_error"] < 0.1
    for end, side in (("lower", -1), ("upper", 1)):
        expected = logged["geometry_M/cv"] + side * 2 * logged["geometry_M/cv_standard_error"]
        torch.testing.assert_close(logged[f"geometry_M/cv_{end}"], expected)


def test_the_untrained_baseline_survives_a_checkpoint(tmp_path):
    tested = module(lr=3e-2)
    trainer = fit(tested)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    going_on = module(lr=3e-2)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        default_root_dir=tmp_path,
    )
    trainer.fit(going_on, datamodule=Data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(going_on.geometry["M"].untrained, tested.geometry["M"].untrained)
    assert not tested.geometry["M"].untrained.isnan().any()


def test_test_figures():
    tested = module()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(tested, datamodule=Data(), verbose=False)
    images, labels = samples()
    squares = reconstruction_errors(tested(images), images, "mse").detach()
    torch.testing.assert_close(trainer.callback_metrics["test_mse/gaussian"], squares[labels == 0].mean())
    torch.testing.assert_close(trainer.callback_metrics["test/mse"], squares.mean())


def test_cross_attention_is_clipped_and_nothing_else():
    norms = {}
    for clip in (None, 1e-6):
        tested = module(cross_attention_clip=clip)
        images, _ = samples()
        tested.net(images)[0].square().mean().mul(1e3).backward()
        tested.on_before_optimizer_step(None)
        norms[clip] = [
            torch.nn.utils.get_total_norm([p.grad for p in part.parameters()])
            for part in (tested.net.cross_attention, tested.net.decoder)
        ]
    assert norms[None][0] > 1e-5
    assert norms[1e-6][0] == pytest.approx(1e-6, rel=1e-3)
    assert norms[1e-6][1] == norms[None][1]


def test_the_whole_gradient_is_clipped_to_the_loss():
    for scale, largest in ((1.0, 1.0), (100.0, 1e4)):
        tested = module(clip_to_loss=True, cross_attention_clip=None)
        images, labels = samples()
        tested.log = lambda *args, **options: None
        tested._trainer = SimpleNamespace(global_step=1, world_size=1)
        loss = tested.training_step((scale * images, labels), 0)
        (1e6 * loss).backward()
        tested.on_before_optimizer_step(None)
        norm = torch.nn.utils.get_total_norm([p.grad for p in tested.net.parameters()])
        assert float(norm) == pytest.approx(max(loss.item(), 1.0), rel=1e-3)
        assert 0.3 * largest < norm <= 1.1 * largest


def test_disciplines_see_the_loss_and_change_it():
    tested, seen = module(), []

    def discipline(loss, point_sets):
        seen.append((loss, point_sets["M"]))
        return 3 * loss

    tested.loss_transforms.append(discipline)
    tested.on_before_backward = lambda loss: seen.append(loss)
    fit(tested, limit_train_batches=1)
    (loss, points), total = seen
    assert total == 3 * loss
    assert points.requires_grad
    assert points.shape == (4, 6, 12, 4)


def test_it_keeps_what_callbacks_rely_on():
    tested = module()
    assert isinstance(tested, HasPointSets)
    assert isinstance(tested, Autoencoding)
    assert isinstance(tested, Traced)
    assert tested.point_set_shapes == {"M": (12, 4)}
    reconstructions, point_sets = tested.autoencode(samples()[0])
    assert torch.equal(reconstructions, tested(samples()[0]))
    assert point_sets["M"].shape == (10, 6, 12, 4)
    names = [name for name, tensor in tested.trace(samples()) if len(tensor) == 10]
    assert names == [
        "target images",
        "encoder output",
        "points M",
        "singular values S",
        "gains S′/S",
        "decoded points M̂",
        "reconstructions",
        "reconstruction loss",
    ]


def test_grouped_mean():
    metric = GroupedMean(3)
    metric.update(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([2, 0, 2]))
    metric.update(torch.tensor([2.0]), torch.tensor([2]))
    values = metric.compute()
    assert {group: float(mean) for group, mean in values.items()} == {0: 2, 2: 3}
    metric.update(torch.tensor([math.nan]), torch.tensor([0]))
    assert metric.compute()[0].isnan()  # a diverged group is seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l1"}, "loss must be one of mse, huber, log_cosh, got 'l1'"),
        ({"cross_attention_clip": 0.0}, "cross_attention_clip must be above 0, got 0.0"),
        ({"lr_interval": "batch"}, "lr_interval must be 'epoch' or 'step', got 'batch'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)
