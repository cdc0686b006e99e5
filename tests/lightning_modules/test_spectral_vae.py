import pytest
import torch
from lightning.pytorch import Trainer

from eigenscope.callbacks import CVLossSchedule
from eigenscope.datamodules import HeavyTailedNoiseDataModule
from eigenscope.geometry import CVPolicy, Phase
from eigenscope.lightning_modules import SpectralVAEModule
from eigenscope.nn import SimplexVAE
from eigenscope.nn.autoencoders.reconstruction_errors import reconstruction_errors
from eigenscope.nn.autoencoders.variational import kl_divergence
from eigenscope.protocols import Autoencoding, HasPointSets, Traced

TYPES = ["gaussian", "cauchy", "pink"]


def module(lr=1e-3, **options):
    torch.manual_seed(0)
    net = SimplexVAE(num_points=8, dim=4, patch_size=4, hidden=32, depth=1, bottleneck=32, image_size=8)
    return SpectralVAEModule(net, lambda named: torch.optim.Adam(named, lr=lr), **options)


def data(**options):
    sizes = {"image_size": 8, "samples_per_epoch": 48, "val_samples_per_type": 5, "batch_size": 12, "num_workers": 0}
    return HeavyTailedNoiseDataModule(types=TYPES, **sizes | options)


def fit(tested, *callbacks, noise=None, **options):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **{"max_epochs": 1} | options,
    )
    torch.manual_seed(1)
    trainer.fit(tested, datamodule=noise or data())
    return trainer


def validation_set():
    noise = data()
    noise.setup("validate")
    images, labels = zip(*noise.val_dataloader(), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("loss", ["huber", "student_t"])
def test_validation_figures(loss):
    tested = module(loss=loss)
    logged = fit(tested).callback_metrics
    images, labels = validation_set()
    tested.requires_grad_(False)
    companded, code = tested.net.eval()(images)
    u = code.companded
    for label in labels.unique().tolist():
        name, these = tested.label_names[label], labels == label
        unexplained = (companded - u)[these].double().square().sum() / (
            u[these].double() - u[these].double().mean()
        ).square().sum()
        assert logged[f"val_fvu/{name}"] == pytest.approx(float(unexplained), rel=1e-5)
        raw = (tested(images)[these] - images[these]).abs().flatten(1)
        assert logged[f"val_raw_median/{name}"] == pytest.approx(float(raw.median(1).values.mean()), rel=1e-4)
        assert logged[f"val_raw_q90/{name}"] == pytest.approx(float(raw.quantile(0.9, 1).mean()), rel=0.1)
    kl = kl_divergence(code.mu, code.log_variance).flatten(-2).mean((0, 1))
    assert logged["val/kl_per_dimension"] == pytest.approx(float(kl.mean()), rel=1e-5)
    assert logged["val/kl"] == pytest.approx(float(kl.sum()), rel=1e-5)
    assert logged["val/active_dimensions"] == (kl > 0.1).sum()
    if loss == "huber":
        assert logged["val/loss"] == pytest.approx(float(reconstruction_errors(companded, u, "huber").mean()), rel=1e-5)
    else:
        assert tested.log_sigma != 0  # it is learned
    for point_set in ("M", "bottleneck", "mu", "z", "H", "decoder"):
        assert 0 < logged[f"geometry_{point_set}/cv"] < 3
        assert f"geometry_{point_set}/cv_untrained" in logged


def test_the_loss_rises_from_reconstruction_alone_to_beta_times_the_kl_term():
    tested, seen = module(lr=0.0, beta=0.5, warmup_steps=2, free_bits=0.0), []
    tested.on_before_backward = lambda loss: seen.append(loss.item())
    plain, without = module(lr=0.0, beta=0.0), []
    plain.on_before_backward = lambda loss: without.append(loss.item())
    trainer = fit(tested)
    fit(plain)
    kl = float(trainer.callback_metrics["train/kl"]) / 4
    added = [a - b for a, b in zip(seen, without, strict=True)]
    assert added[0] == 0
    assert added[1] == pytest.approx(0.25 * kl, rel=0.2)
    assert added[3] == pytest.approx(0.5 * kl, rel=0.2)


def test_a_collapse_is_flagged(caplog):
    logged = fit(module(lr=1e-2, beta=30.0, warmup_steps=0), max_epochs=6).callback_metrics
    assert logged["val/collapsed"] == 1
    assert logged["val/active_dimensions"] < 2
    assert caplog.text.count("The posterior has collapsed: ") == 1


def test_every_sector_can_be_disciplined_at_once():
    tested = module()
    names = tested.point_set_shapes
    callback = CVLossSchedule({name: CVPolicy(phases=[Phase(1.0)]) for name in names}, measure_every=1)
    without = []

    def note(optimizer):
        without.extend(name for name, p in tested.named_parameters() if p.grad is None or not p.grad.isfinite().all())

    tested.on_before_optimizer_step = note
    logged = fit(tested, callback).callback_metrics
    assert {f"cv_{name}/ema" for name in ("M", "bottleneck", "mu", "z", "H", "decoder")} <= set(logged)
    assert without == []


def test_training_draws_and_evaluation_does_not():
    tested = module()
    images, _ = validation_set()
    tested.net.train()
    assert torch.equal(tested(images), tested(images))
    assert not torch.equal(tested.net(images)[0], tested.net(images)[0])


def test_it_keeps_what_callbacks_rely_on():
    tested = module()
    for protocol in (HasPointSets, Autoencoding, Traced):
        assert isinstance(tested, protocol)
    images, labels = validation_set()
    traced = dict(tested.trace((images, labels)))
    assert all(len(tensor) == len(images) for tensor in traced.values())
    assert list(traced)[-1] == "reconstruction loss"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l1"}, "loss must be one of mse, huber, log_cosh, student_t, got 'l1'"),
        ({"beta": -1.0}, "beta must be at least 0, got -1.0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"free_bits": float("nan")}, "free_bits must be at least 0, got nan"),
        ({"degrees_of_freedom": 0.0}, "degrees_of_freedom must be above 0, got 0.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)
