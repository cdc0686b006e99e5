import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from eigenscope.datamodules import GradientSpikeDataModule
from eigenscope.lightning_modules import GradientReplayModule
from eigenscope.nn import FreeMatrix

SHAPE = (4, 3)


class StepRecorder(Callback):
    """Keeps what the optimizer is given, the weights around each step and what is logged of it."""

    def __init__(self):
        self.gradients, self.weights, self.logged = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.weights.append(pl_module.weight.detach().clone())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(pl_module.weight.grad.clone())

    def on_train_batch_start(self, trainer, *_):
        if self.gradients:  # the module logs a step after its callbacks have seen the end of it
            self.logged.append(dict(trainer.callback_metrics))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(pl_module.weight.detach().clone())

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append(dict(trainer.callback_metrics))


def replay(tmp_path, data, *, optimizer=None, scheduler=None, net=None, **options):
    module = GradientReplayModule(
        net or FreeMatrix(*SHAPE), optimizer or (lambda p: torch.optim.SGD(p, lr=0.5)), scheduler
    )
    recorder = StepRecorder()
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=recorder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1} | options,
    )
    given = {"datamodule": data} if isinstance(data, GradientSpikeDataModule) else {"train_dataloaders": data}
    trainer.fit(module, **given)
    return recorder


def spikes(**options):
    return GradientSpikeDataModule(*SHAPE, **{"steps": 6, "spike_step": 3, "spike_scale": 1e5} | options)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_gradient_is_the_datum_bit_for_bit(precision, tmp_path):
    data = spikes()
    recorder = replay(tmp_path, data, precision=precision)
    assert len(recorder.gradients) == 6
    for got, given in zip(recorder.gradients, data.train_dataloader(), strict=True):
        assert torch.equal(got.view(torch.int32), given[0].view(torch.int32))


def test_the_start_of_the_weights_does_not_matter(tmp_path):
    net = FreeMatrix(*SHAPE)
    nn.init.normal_(net.weight, std=100.0)
    data = spikes()
    recorder = replay(tmp_path, data, net=net)
    assert torch.equal(torch.stack(recorder.gradients), torch.cat(list(data.train_dataloader())))


def test_a_batch_is_the_mean_of_its_gradients(tmp_path):
    batches = torch.randn(3, 5, *SHAPE, generator=torch.Generator().manual_seed(0))
    recorder = replay(tmp_path, batches)
    torch.testing.assert_close(torch.stack(recorder.gradients), batches.mean(1))


def test_logs_the_norm_of_the_gradient_and_the_size_of_the_step(tmp_path):
    data = spikes(spike_scale=100.0)
    # of a schedule the rate of the step itself counts, not the next one's
    recorder = replay(tmp_path, data, scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)))
    for step, given in enumerate(data.train_dataloader()):
        figures = recorder.logged[step]
        norm = given.double().square().sum().sqrt()
        torch.testing.assert_close(figures["train/grad_norm"].double(), norm, rtol=1e-6, atol=0)
        torch.testing.assert_close(figures["update/rms"].double(), norm / 12**0.5, rtol=1e-4, atol=0)
        change = recorder.weights[step + 1] - recorder.weights[step]
        torch.testing.assert_close(change, -0.5 / (1 + step) * given[0], rtol=1e-4, atol=1e-6)


def test_clipping_shows_in_the_step_alone(tmp_path):
    recorder = replay(tmp_path, spikes(), gradient_clip_val=1.0)
    for figures in recorder.logged:
        assert figures["train/grad_norm"] > 1.1
        assert figures["update/rms"] == pytest.approx(12**-0.5, rel=1e-4)


def test_a_step_at_rate_zero_has_no_size(tmp_path):
    recorder = replay(tmp_path, spikes(steps=4), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert "train/grad_norm" in recorder.logged[-1]
    assert "update/rms" not in recorder.logged[-1]


def test_accumulated_batches_are_one_step(tmp_path):
    batches = torch.randn(4, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    recorder = replay(tmp_path, batches, accumulate_grad_batches=2)
    means = batches.unflatten(0, (2, 2)).mean((1, 2))
    torch.testing.assert_close(torch.stack(recorder.gradients), means)
    rms = means.square().mean((1, 2)).sqrt()
    assert recorder.logged[-1]["update/rms"] == pytest.approx(float(rms[1]), rel=1e-5)


def test_gradients_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'weight' is \(4, 4\), the gradients are \(4, 3\)"):
        replay(tmp_path, spikes(), net=FreeMatrix(4, 4))
    with pytest.raises(ValueError, match=r"'weight' is \(4, 3\), the gradients are \(1, 3\)"):  # it would broadcast
        replay(tmp_path, torch.ones(2, 1, 1, 3))


def test_the_network_has_one_trainable_parameter():
    optimizer = torch.optim.SGD
    with pytest.raises(ValueError, match=r"Linear has 2, of which trainable \['weight', 'bias'\]"):
        GradientReplayModule(nn.Linear(3, 4), optimizer)
    with pytest.raises(ValueError, match=r"Identity has 0, of which trainable \[\]"):
        GradientReplayModule(nn.Identity(), optimizer)
    with pytest.raises(ValueError, match=r"FreeMatrix has 1, of which trainable \[\]"):
        GradientReplayModule(FreeMatrix(2, 2).requires_grad_(False), optimizer)
    with pytest.raises(ValueError, match="lr_interval must be"):
        GradientReplayModule(FreeMatrix(2, 2), optimizer, lr_interval="week")
