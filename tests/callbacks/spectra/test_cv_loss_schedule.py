import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from eigenscope.callbacks import CVLossSchedule
from eigenscope.geometry import CVPolicy, Phase, SoftHand, expected_cv, volume_cv
from eigenscope.lightning_modules import SpectralAutoencoderModule
from eigenscope.nn import PatchSVAE

TARGET = expected_cv(8)


def images(count=16):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def module(cone=None, lr=3e-3, **options):
    """A small autoencoder; with ``cone`` the rows of every M lie about one direction, at this angle in radians."""
    torch.manual_seed(0)
    net = PatchSVAE(**{"num_points": 32, "dim": 8, "patch_size": 4, "hidden": 32, "depth": 1} | options)
    if cone is not None:
        last = net.encoder[-1]
        axis = nn.functional.normalize(torch.randn(net.dim), dim=0)
        with torch.no_grad():
            last.weight.mul_(cone)
            last.bias.copy_((axis + cone * torch.randn(net.num_points, net.dim)).flatten())
    return SpectralAutoencoderModule(net, lambda named: torch.optim.Adam(named, lr=lr))


def fit(module, *callbacks, steps=60, count=16, ckpt_path=None, how=(), **options):
    batches = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in images(count).split(8)]
    loader = DataLoader(batches, batch_size=None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max(1, steps // len(batches)),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0} | options,
    )
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path, **dict(how))
    return trainer


def measured(module):
    with torch.no_grad():
        code = module.net.encode(images())
    return float(volume_cv(code.points, 400, torch.Generator().manual_seed(1)).cv.mean())


def term(weight=20.0, **policy):
    return CVLossSchedule({"M": CVPolicy(phases=[Phase(weight)], **policy)}, measure_every=1)


def test_a_wrong_start_reaches_the_target_only_with_the_term():
    start = measured(module(cone=0.05))
    assert abs(start - TARGET) > 0.05
    with_term, without, soft = (module(cone=0.05, lr=1e-2) for _ in range(3))
    fit(with_term, term(), steps=40)
    fit(without, steps=40)
    fit(soft, CVLossSchedule({"M": CVPolicy(soft_hand=SoftHand())}), steps=40)
    assert abs(measured(with_term) - TARGET) < 0.02
    assert abs(measured(without) - TARGET) > 0.02
    assert abs(measured(soft) - TARGET) > 0.02  # as reported, it is inert


def losses_and_gradients(callback):
    tested = module(cone=0.05, lr=0.0)
    seen = []
    tested.on_before_backward = lambda loss: seen.append(loss.item())
    tested.on_train_batch_end = lambda *args: seen.append(tested.net.encoder[-1].weight.grad.clone())
    fit(tested, *callback, steps=2)
    return seen


def test_the_term_is_what_it_says_and_its_gradient_reaches_the_weights():
    loss, gradient, *_ = losses_and_gradients([])
    more, other, *_ = losses_and_gradients([term(20.0)])
    assert (more - loss) / 20 == pytest.approx((measured(module(cone=0.05)) - TARGET) ** 2, rel=0.3)
    assert (other - gradient).norm() > 0.1 * gradient.norm()


def test_the_soft_hand_scales_the_loss_and_adds_a_constant():
    hand = SoftHand(boost=0.5, penalty=3.0, width=0.15)
    callback = CVLossSchedule({"M": CVPolicy(soft_hand=hand)}, measure_every=1)
    plain, *_ = losses_and_gradients([])
    disciplined, *_ = losses_and_gradients([callback])
    cv = callback.state_dict()["point_sets"]["M"]["cv"]  # of the second step, with the same weights and images
    expected = hand.apply(torch.tensor(plain), cv, TARGET)
    assert disciplined == pytest.approx(float(expected), rel=0.02)
    assert disciplined > 1.1 * plain


def test_a_sector_without_gradient_is_measured_and_gets_no_term():
    tested, callback = module(), term()
    tested.net.encoder.requires_grad_(False)
    fit(tested, callback, steps=4)
    assert callback.state_dict()["point_sets"]["M"]["cv"] == pytest.approx(TARGET, abs=0.05)


class OddSectors(SpectralAutoencoderModule):
    """Its point sets are one matrix for all images, and a copy that the loss does not use."""

    def training_step(self, batch, batch_idx):
        images, _ = batch
        reconstructions, code = self.net(images)
        loss = (reconstructions - images).square().mean()
        points = nn.functional.normalize(code.points[0, 0].clone(), dim=-1)
        return self.loss_transforms[0](loss, {"M": points})


def test_a_sector_may_be_one_matrix_and_a_copy():
    torch.manual_seed(0)
    net = PatchSVAE(num_points=32, dim=8, patch_size=4, hidden=32, depth=1)
    tested = OddSectors(net, lambda named: torch.optim.Adam(named, lr=1e-3))
    callback = term()
    fit(tested, callback, steps=4)
    assert callback.state_dict()["point_sets"]["M"]["cv"] == pytest.approx(TARGET, abs=0.1)


def test_a_collapsed_sector_leaves_the_measured_figures_alone(tmp_path):
    tested = module(lr=0.0)
    with torch.no_grad():
        last = tested.net.encoder[-1]
        last.weight.zero_()
        last.bias.copy_(torch.ones(32, 8).flatten())  # all points are one
    policy = CVPolicy(phases=[Phase(1.0)], soft_hand=SoftHand())
    callback = CVLossSchedule({"M": policy}, measure_every=1)
    fit(tested, callback, steps=1, logger=TensorBoardLogger(tmp_path, name=None, version="run"))
    assert callback.state_dict()["point_sets"]["M"] == {"cv": None, "ema": None}
    assert events(tmp_path / "run")["cv_M/degenerate"][0][1] == 1
    assert all(parameter.isfinite().all() for parameter in tested.parameters())


def events(folder):
    log = EventAccumulator(str(folder))
    log.Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_what_is_logged(tmp_path):
    policy = CVPolicy(phases=[Phase(20.0, epochs=2), Phase(10.0, ramp=2)])
    callback = CVLossSchedule({"M": policy}, measure_every=2)
    logger = TensorBoardLogger(tmp_path, name=None, version="run")
    trainer = fit(module(), callback, steps=24, count=32, logger=logger)  # 6 epochs of 4 batches
    figures = events(tmp_path / "run")
    names = ["degenerate", "ema", "gradient_norm", "lower", "measured", "proximity", "reconstruction_gradient_norm"]
    names += ["standard_error", "target", "upper", "weight"]
    assert {tag for tag in figures if tag.startswith("cv_M/")} == {f"cv_M/{name}" for name in names}
    weights = [20.0] * 4 + [20.0, 17.5, 15.0, 12.5] + [10.0] * 4
    assert [value for _, value in figures["cv_M/weight"]] == weights
    assert [step for step, _ in figures["cv_M/measured"]] == list(range(1, 24, 2))
    assert [value for _, value in figures["cv_M/target"]] == pytest.approx([TARGET] * 12)
    errors = torch.tensor([value for _, value in figures["cv_M/standard_error"]])
    values = torch.tensor([value for _, value in figures["cv_M/measured"]])
    for end, side in (("lower", -1), ("upper", 1)):
        band = torch.tensor([value for _, value in figures[f"cv_M/{end}"]])
        torch.testing.assert_close(band, values + side * 2 * errors)
    assert ((values - TARGET).abs() < 5 * errors + 0.03).all()
    assert min(value for _, value in figures["cv_M/gradient_norm"]) > 0
    ema = values[0]
    for value in values[1:]:
        ema = 0.9 * ema + 0.1 * value
    assert float(trainer.callback_metrics["cv_M/ema"]) == pytest.approx(float(ema), rel=1e-5)


def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path):
    def callback():
        policy = CVPolicy(phases=[Phase(5.0, epochs=3), Phase(1.0, ramp=2)], soft_hand=SoftHand())
        return CVLossSchedule({"M": policy}, measure_every=2)

    whole, first, second = module(), module(), module(lr=9.0)
    last = callback()
    fit(whole, last, steps=12)
    trainer = fit(first, callback(), steps=6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(5)  # the draws must not depend on it
    resumed = callback()
    fit(second, resumed, steps=12, ckpt_path=tmp_path / "half.ckpt", how={"weights_only": True})
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert resumed.state_dict() == last.state_dict()


def test_it_leaves_the_module_as_it_was():
    tested = module()
    fit(tested, term(), steps=2)
    assert tested.loss_transforms == []

    class Failing(CVLossSchedule):
        def on_train_batch_end(self, *args):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fit(tested, Failing({"M": CVPolicy()}), steps=2)
    assert tested.loss_transforms == []


class Plain(LightningModule):
    def configure_optimizers(self):
        return None

    def training_step(self, batch, batch_idx):
        return None

    def validation_step(self, batch, batch_idx):
        return None


@pytest.mark.parametrize(
    ("tested", "point_sets", "message"),
    [
        (lambda: module(), {"H": CVPolicy()}, "SpectralAutoencoderModule has no point set 'H'; there are: M"),
        (lambda: Plain(), {"M": CVPolicy()}, "Plain has no point set 'M'; there are: none"),
        (lambda: module(num_points=4, dim=4), {"M": CVPolicy()}, "it has 4 in 4"),
        (lambda: module(num_points=8, dim=2), {"M": CVPolicy()}, "it has 8 in 2"),
    ],
)
def test_sectors_that_cannot_be_disciplined(tested, point_sets, message):
    with pytest.raises(ValueError, match=message):
        fit(tested(), CVLossSchedule(point_sets), steps=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_sets": {}}, "point_sets must name at least one"),
        ({"measure_every": 0}, "measure_every must be at least 1, got 0"),
        ({"loss_matrices": 0}, "loss_matrices must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CVLossSchedule(**{"point_sets": {"M": CVPolicy()}} | arguments)
