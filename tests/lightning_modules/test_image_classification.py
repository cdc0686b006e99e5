import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from eigenscope.data import EpochIndex, ImageDataset, LabelledImages
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.nn import DeiT, TapConfig, observe


def small_net(**options):
    torch.manual_seed(0)
    return DeiT(image_size=16, width=16, depth=2, num_heads=2, num_classes=6, dropout=0.0, **options)


def loader(count=23, batch_size=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    data = ImageDataset(LabelledImages(images, torch.arange(count) % 6))
    keys = [EpochIndex(0, i) for i in range(count)]
    return DataLoader(data, batch_size=batch_size, sampler=keys, collate_fn=lambda batch: batch)


def fit(module, tmp_path, **options):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 1} | options,
    )
    trainer.fit(module, loader(), loader())
    return trainer


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_epoch_figures_are_means_over_samples(tmp_path):
    module = ImageClassificationModule(small_net(), sgd)
    logged = fit(module, tmp_path).callback_metrics
    images, labels = next(iter(loader(batch_size=23)))
    with torch.no_grad():
        logits = module.net.eval()(images)
    order = logits.argsort(descending=True)
    expected = {
        "loss": F.cross_entropy(logits, labels),
        "acc": (order[:, 0] == labels).float().mean(),
        "acc5": (order[:, :5] == labels[:, None]).any(1).float().mean(),
    }
    for stage in ("train", "val"):  # the learning rate is 0 and there is no dropout: both see the same network
        for name, value in expected.items():
            torch.testing.assert_close(logged[f"{stage}/{name}"], value, msg=f"{stage}/{name}")
    assert logged["val/gap"] == 0


def test_a_loss_that_is_nan_is_seen(tmp_path):
    net = small_net()
    module = ImageClassificationModule(net, sgd)
    net.register_forward_hook(lambda net, images, logits: logits * (torch.nan if len(logits) < 5 else 1.0))
    logged = fit(module, tmp_path).callback_metrics
    assert logged["train/loss"].isnan()
    assert logged["val/loss"].isnan()


def test_gap_is_training_minus_validation(tmp_path):
    module = ImageClassificationModule(small_net(), lambda p: torch.optim.Adam(p, lr=1e-2))
    logged = fit(module, tmp_path, max_epochs=8).callback_metrics
    assert logged["val/gap"] == pytest.approx(float(logged["train/acc"] - logged["val/acc"]))
    assert logged["val/gap"] != 0


def test_label_smoothing_is_of_the_training_loss_alone(tmp_path):
    plain = fit(ImageClassificationModule(small_net(), sgd), tmp_path).callback_metrics
    smooth = fit(ImageClassificationModule(small_net(), sgd, label_smoothing=0.3), tmp_path).callback_metrics
    assert smooth["val/loss"] == plain["val/loss"]
    assert smooth["train/loss"] != plain["train/loss"]


def test_optimizer_sees_named_trainable_parameters_only():
    module = ImageClassificationModule(small_net(taps=TapConfig(layers=(1,), rank=4)), torch.optim.AdamW)
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0]["param_names"] == [
        name for name, parameter in module.net.named_parameters() if parameter.requires_grad
    ]


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 2), ("step", 10)])
def test_schedule_counts_the_interval(tmp_path, interval, steps):
    module = ImageClassificationModule(
        small_net(),
        lambda p: torch.optim.SGD(p, lr=1.0e-3),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.5),
        lr_interval=interval,
    )
    trainer = fit(module, tmp_path, max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**steps)


def test_compiling_in_place_keeps_keys_figures_and_probes(tmp_path):
    torch._dynamo.reset()
    compiled = ImageClassificationModule(small_net(taps=TapConfig(layers=(2,), rank=4)), sgd, compile_net=True)
    keys = list(compiled.state_dict())
    plain = ImageClassificationModule(small_net(taps=TapConfig(layers=(2,), rank=4)), sgd)
    options = {"limit_train_batches": 2, "limit_val_batches": 0}
    logged = fit(compiled, tmp_path, **options).callback_metrics
    assert compiled.net._compiled_call_impl is not None
    assert list(compiled.state_dict()) == keys
    torch.testing.assert_close(logged["train/loss"], fit(plain, tmp_path, **options).callback_metrics["train/loss"])
    images = torch.rand(5, 3, 16, 16)
    with observe(compiled, "net.taps.projected", "*.keys") as seen, observe(plain, "*.keys") as expected:
        compiled(images)
        plain(images)
    assert seen["net.taps.projected"].shape == (1, 5, 16, 4)
    torch.testing.assert_close(seen["net.blocks.1.attention.keys"], expected["net.blocks.1.attention.keys"])


def test_predictions_are_probabilities(tmp_path):
    module = ImageClassificationModule(small_net(), sgd)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    batches = trainer.predict(module, loader())
    predictions = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert predictions["probabilities"].shape == predictions["logits"].shape == (23, 6)
    torch.testing.assert_close(predictions["probabilities"].sum(1), torch.ones(23))
    assert torch.equal(predictions["probabilities"], predictions["logits"].softmax(1))
    assert torch.equal(predictions["labels"], torch.cat([labels for _, labels in loader()]))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"net": nn.Linear(2, 2)}, "net must have an integer attribute num_classes, Linear has None"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"lr_interval": "batch"}, "lr_interval"),
    ],
)
def test_bad_arguments(arguments, word):
    with pytest.raises(ValueError, match=word):
        ImageClassificationModule(**{"net": small_net(), "optimizer": sgd} | arguments)
