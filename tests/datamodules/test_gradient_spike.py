import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from eigenscope.datamodules import GradientSpikeDataModule


def gradients(**options):
    data = GradientSpikeDataModule(**{"rows": 3, "columns": 5, "steps": 8, "spike_step": 4} | options)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches)
    return torch.cat(batches)


def test_the_spike_is_one_gradient_scaled():
    spiked, plain = gradients(spike_scale=1000.0), gradients(spike_scale=1.0)
    assert spiked.shape == (8, 3, 5)
    assert spiked.dtype == torch.float32
    assert torch.equal(spiked[4], 1000 * plain[4])
    others = [0, 1, 2, 3, 5, 6, 7]
    assert torch.equal(spiked[others], plain[others])


def test_the_entries_are_standard_normal():
    entries = gradients(rows=128, columns=64, steps=20, spike_scale=1.0).double().flatten()
    deviation = 1 / math.sqrt(len(entries))
    assert abs(entries.mean()) < 4 * deviation
    assert abs(entries.var() - 1) < 4 * math.sqrt(2) * deviation
    inside = (entries.abs() < 1).double().mean()
    assert abs(inside - math.erf(math.sqrt(0.5))) < 4 * deviation / 2
    assert not torch.equal(entries[:8192], entries[8192:16384])


def test_the_same_whenever_they_are_asked_for():
    torch.manual_seed(0)
    first = gradients()
    torch.manual_seed(1)
    data = GradientSpikeDataModule(rows=3, columns=5, steps=8, spike_step=4)
    assert torch.equal(torch.cat(list(data.train_dataloader())), first)
    assert torch.equal(torch.cat(list(data.train_dataloader())), first)
    assert not torch.equal(gradients(seed=1), first)


def test_a_run_begins_like_every_longer_one():
    assert torch.equal(gradients(steps=50)[:8], gradients())


def test_defaults_are_the_study():
    data = GradientSpikeDataModule()
    assert data.gradient_shape == (128, 64)
    norms = torch.stack([gradient.norm() for gradient in data.train_dataloader()])
    assert len(norms) == 200
    assert norms.argmax() == 50
    assert norms[50] / norms.median() == pytest.approx(1000, rel=0.05)


class Recorder(LightningModule):
    """Keeps the batches that it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.clone())
        return self.weight * batch.sum()


def test_lightning_leaves_them_in_order_in_every_epoch(tmp_path):
    module = Recorder()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(module, datamodule=GradientSpikeDataModule(rows=3, columns=5, steps=8, spike_step=4))
    assert torch.equal(torch.cat(module.seen), torch.cat([gradients(), gradients()]))


def test_says_what_it_holds():
    assert str(GradientSpikeDataModule()) == "200 gradients of 128×64"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"columns": -1}, "columns must be at least 1, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"spike_step": 200}, r"spike_step must be in \[0, steps\), which is \[0, 200\), got 200"),
        ({"spike_step": -1}, "spike_step must be in .* got -1"),
        ({"spike_scale": math.inf}, "spike_scale must be finite, got inf"),
        ({"spike_scale": math.nan}, "spike_scale must be finite, got nan"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        GradientSpikeDataModule(**wrong)
