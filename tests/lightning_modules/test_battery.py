from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from eigenscope.callbacks import CVLossSchedule, FiniteGuard, NonFiniteError
from eigenscope.datamodules import HeavyTailedNoiseDataModule
from eigenscope.geometry import CVPolicy
from eigenscope.lightning_modules import BatteryModule
from eigenscope.nn import BatteryArray
from eigenscope.noise import NOISE_TYPES, draw_noise, pick_from_mixtures, stream_key
from eigenscope.protocols import HasBatteries, HasPointSets, Traced

SMALL = {"num_points": 8, "dim": 4, "patch_size": 4, "hidden": 8, "depth": 0}
K = 9


def module(count=K, optimizer=None, **options):
    torch.manual_seed(0)
    optimizer = optimizer or partial(torch.optim.Adam, lr=1e-2)
    return BatteryModule(BatteryArray(count, **SMALL), optimizer, **options)


class Data(LightningDataModule):
    """Two training batches of 12 and 20 images, and validation batches of 5, 5 and 4 without two of the types."""

    label_names = NOISE_TYPES

    def __init__(self, dtype=torch.float32):
        super().__init__()
        order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
        labels = (order % 16).split([12, 20])
        self.train = [(self.draw(kinds, part).to(dtype), kinds) for part, kinds in enumerate(labels)]
        self.labels = torch.arange(14)
        self.images = self.draw(self.labels, 2).to(dtype)

    def draw(self, kinds, epoch):
        return draw_noise(kinds, seed=0, epoch=epoch, samples=torch.arange(len(kinds)), image_size=8, clamp=4.0)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=None)

    def val_dataloader(self):
        return DataLoader(list(zip(self.images.split(5), self.labels.split(5), strict=True)), batch_size=None)

    test_dataloader = val_dataloader


def fit(tested, data=None, **options):
    seed_everything(7, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 3} | options,
    )
    trainer.fit(tested, datamodule=data or Data())
    return trainer


def picked(tested, data, images_per_battery, epochs=3):
    """Images and whether they count, step by step."""
    ids = {name: number for number, name in enumerate(NOISE_TYPES)}
    mixtures = [{ids[name] for name in mixture} for mixture in tested.mixtures]
    members = torch.tensor([[kind in mixture for kind in range(16)] for mixture in mixtures])
    for epoch in range(epochs):
        for number, (images, labels) in enumerate(data.train):
            key = stream_key(7, epoch, number, 0)
            places, fitting = pick_from_mixtures(labels, members, images_per_battery, key)
            yield images[places], fitting, labels[places]


@pytest.mark.parametrize("images_per_battery", [1, 3])
def test_batteries_trained_together_are_as_if_trained_alone(images_per_battery):
    data = Data(torch.float64)
    tested = module(images_per_battery=images_per_battery).double()
    alone = [tested.net.battery(k) for k in range(K)]
    untrained = [battery.state_dict()["encoder.0.weight"].clone() for battery in alone]
    optimizers = [torch.optim.Adam(battery.parameters(), lr=1e-2) for battery in alone]
    fit(tested, data, num_sanity_val_steps=0)
    steps = torch.zeros(K, dtype=torch.int64)
    for images, fitting, labels in picked(tested, data, images_per_battery):
        for k, (battery, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            own = images[k][fitting[k]]
            assert {NOISE_TYPES[kind] for kind in labels[k][fitting[k]].tolist()} <= set(tested.mixtures[k])
            optimizer.zero_grad(set_to_none=False)
            if len(own):
                (battery(own)[0] - own).square().mean().backward()
                steps[k] += 1
            for parameter in battery.parameters():  # a battery without images has the gradient 0
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            optimizer.step()
    assert torch.equal(tested.steps, steps)
    assert 0 < steps.min() < steps.max() == 6
    for k, battery in enumerate(alone):
        assert not torch.equal(battery.encoder[0].weight, untrained[k])
        for name, value in tested.net.battery(k).state_dict().items():
            torch.testing.assert_close(value, battery.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_what_is_not_of_its_mixture_does_not_reach_a_battery():
    data, other = Data(), Data()
    kinds = [NOISE_TYPES.index(name) for name in module().mixtures[0]]
    for images, labels in other.train:
        images[~torch.isin(labels, torch.tensor(kinds))] *= 2
    first, second = module(), module()
    fit(first, data)
    fit(second, other)
    for (name, one), two in zip(first.net.named_parameters(), second.net.parameters(), strict=True):
        torch.testing.assert_close(one[0], two[0], rtol=0, atol=0, msg=name)
    assert not torch.equal(first.net.encoder[0].weight, second.net.encoder[0].weight)


def test_figures_are_those_of_a_direct_computation():
    tested, data = module(optimizer=partial(torch.optim.SGD, lr=0.0), images_per_battery=2), Data()
    logged = fit(tested, data, max_epochs=1).callback_metrics
    with torch.no_grad():
        cross = torch.stack([(tested.net.battery(k)(data.images)[0] - data.images).square() for k in range(K)])
        losses = [
            (tested.net.battery(k)(images[k])[0] - images[k])[fitting[k]].square().mean()
            for images, fitting, _ in picked(tested, data, 2, epochs=1)
            for k in range(K)
            if fitting[k].any()
        ]
    cross = cross.mean((2, 3, 4))  # one image a type
    torch.testing.assert_close(tested.cross_scores[:, :14], cross.double(), rtol=1e-5, atol=1e-7)
    assert tested.cross_scores[:, 14:].isnan().all()
    own = []
    for k, mixture in enumerate(tested.mixtures):
        kinds = [NOISE_TYPES.index(name) for name in mixture]
        seen = [kind for kind in kinds if kind < 14]
        if seen:
            own.append(cross[k, seen].mean())
    torch.testing.assert_close(logged["val/mse"], torch.stack(own).mean())
    for kind in range(14):
        torch.testing.assert_close(logged[f"val_mse/{NOISE_TYPES[kind]}"], cross[:, kind].min(), rtol=1e-5, atol=1e-7)
    assert f"val_mse/{NOISE_TYPES[14]}" not in logged
    torch.testing.assert_close(logged["train/loss"], torch.stack(losses).mean())
    tests = tested.trainer.test(tested, datamodule=data, verbose=False)[0]
    assert tests["test/mse"] == pytest.approx(float(logged["val/mse"]))


def test_a_battery_that_is_no_number_is_the_best_at_nothing_and_shows():
    tested, data = module(2), Data()
    with torch.no_grad():
        tested.net.decoder[-1].bias[0] = torch.nan
        expected = (tested.net.battery(1)(data.images)[0] - data.images).square().mean((1, 2, 3))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (logged,) = trainer.validate(tested, datamodule=data, verbose=False)
    for kind in range(14):
        assert logged[f"val_mse/{NOISE_TYPES[kind]}"] == pytest.approx(float(expected[kind]), rel=1e-5)
    assert logged["val/mse"] != logged["val/mse"]


def test_the_sanity_check_is_no_validation():
    tested = module()
    fit(tested, max_epochs=1, check_val_every_n_epoch=2)
    assert tested.cross_scores is None


def test_a_step_counts_once_however_many_batches_it_takes():
    tested = module()
    fit(tested, max_epochs=2, accumulate_grad_batches=2)
    assert tested.steps.max() == 2 == tested.steps[3]  # a battery of all types


def test_disciplines_reach_each_battery_as_if_it_were_alone():
    tested, data = module(), Data()
    tested.loss_transforms.append(lambda loss, point_sets: loss + point_sets["M"][..., 0].mean())
    fit(tested, data, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    torch.manual_seed(0)
    array = BatteryArray(K, **SMALL)
    images, fitting, _ = next(picked(tested, data, 1))
    for k in range(K):
        battery = array.battery(k)
        optimizer = torch.optim.Adam(battery.parameters(), lr=1e-2)
        if fitting[k].any():
            reconstructions, code = battery(images[k])
            ((reconstructions - images[k]).square().mean() + code.points[..., 0].mean()).backward()
            optimizer.step()
            gradient = tested.net.encoder[0].weight.grad
            torch.testing.assert_close(gradient[k], battery.encoder[0].weight.grad, rtol=1e-4, atol=1e-6)
        else:
            assert not tested.net.encoder[0].weight.grad[k].any()
    schedule = CVLossSchedule({"M": CVPolicy()}, measure_every=1)
    assert "cv_M/ema" in fit(module(), max_epochs=1, callbacks=[schedule]).callback_metrics


def test_the_guard_names_the_noise_type_or_the_battery():
    tested, data = module(), Data()
    assert isinstance(tested, Traced)
    assert isinstance(tested, HasBatteries)
    assert isinstance(tested, HasPointSets)
    data.train[0][0][3] = torch.inf
    kind = NOISE_TYPES[int(data.train[0][1][3])]
    with pytest.raises(NonFiniteError, match=f"'target images', in samples of {kind};"):
        fit(tested, data, callbacks=[FiniteGuard()], fast_dev_run=True)
    with torch.no_grad():
        tested.net.decoder[0].weight[4] = 3e38  # finite, what it makes is not
    said = f"'reconstructions', in samples of battery 4 \\({tested.mixtures[4][0]}\\);"
    with pytest.raises(NonFiniteError, match=said):
        fit(tested, callbacks=[FiniteGuard()], fast_dev_run=True)


def test_a_norm_over_all_batteries_is_refused():
    for algorithm in (None, "norm"):
        with pytest.raises(ValueError, match=r"trainer.gradient_clip_val must be null, .* got 1.0 by norm"):
            fit(module(), gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)
    fit(module(), gradient_clip_val=1.0, gradient_clip_algorithm="value", fast_dev_run=True)


def test_bad_arguments_are_named():
    for options, message in (
        ({"lr_interval": "week"}, "lr_interval must be"),
        ({"images_per_battery": 0}, "images_per_battery must be at least 1, got 0"),
        ({"types": "gaussian"}, "types must be 'all' or a list of names, got 'gaussian'"),
        ({"types": ["gauss"]}, "noise type is 'gauss'"),
        ({"mixtures": ["triples"]}, "kinds must be of singles, pairs, quads, all, got 'triples'"),
    ):
        with pytest.raises(ValueError, match=message):
            module(**options)
    with pytest.raises(ValueError, match="images_per_battery must be in 1 to 12, the images of the batch, got 13"):
        fit(module(images_per_battery=13))
    few = {"types": ["gaussian", "pink"], "image_size": 8, "samples_per_epoch": 8, "batch_size": 4, "num_workers": 0}
    with pytest.raises(ValueError, match="must be among those of the data, gaussian, pink; not"):
        fit(module(), HeavyTailedNoiseDataModule(**few))
    fit(module(types=["pink", "gaussian"], mixtures=["pairs"]), HeavyTailedNoiseDataModule(**few), fast_dev_run=True)
    named = Data()
    named.label_names = ("cat", "dog")
    with pytest.raises(ValueError, match="needs data whose labels are the noise types, got cat, dog"):
        fit(module(), named)


def test_the_matrix_goes_with_a_checkpoint():
    trained, rebuilt = module(), module()
    fit(trained)
    checkpoint: dict = {}
    trained.on_save_checkpoint(checkpoint)
    rebuilt.on_load_checkpoint(checkpoint)
    assert torch.equal(rebuilt.cross_scores.nan_to_num(), trained.cross_scores.nan_to_num())
