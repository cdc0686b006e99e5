import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from callbacks import FiniteGuard, NonFiniteError
from eigenscope.nn import PatchSVAE
from lightning_modules import SpectralAutoencoderModule


def module():
    torch.manual_seed(0)
    net = PatchSVAE(num_points=12, dim=4, patch_size=4, hidden=24, depth=1)
    return SpectralAutoencoderModule(net, lambda named: torch.optim.Adam(named, lr=1e-3))


def batches(*values):
    """One batch a value, which its last image holds in one pixel; the last image is of type 1."""
    out = []
    for number, value in enumerate(values):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        if value is not None:
            images[3, 0, 0, 0] = value
        out.append((images, torch.tensor([0, 0, 0, 1])))
    return out


def fit(tested, data, tmp_path, ckpt_path=None, how=(), guard=None, **options):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=[guard or FiniteGuard()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **{"max_epochs": 1} | options,
    )
    loader = DataLoader(data, batch_size=None)
    trainer.fit(tested, loader, loader, ckpt_path=ckpt_path, **dict(how))
    return trainer


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_target_that_is_not_finite(tmp_path, value):
    tested, twin = module(), module()
    with pytest.raises(NonFiniteError) as caught:
        fit(tested, batches(None, None, value, None), tmp_path)
    assert str(caught.value).startswith(
        "step 2: the first tensor that is not finite is 'target images', in samples of label 1; the state before it is"
    )
    fit(twin, batches(None, None), tmp_path / "twin")
    saved = torch.load(tmp_path / "checkpoints" / "last_good.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    for name, value in twin.state_dict().items():
        assert torch.equal(saved["state_dict"][name], value), name


def test_the_batch_that_failed_is_named_with_accumulated_gradients(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 0: .* 'reconstruction loss', in samples of label 1"):
        fit(module(), batches(1.9e19, None), tmp_path, accumulate_grad_batches=2)


def test_a_loss_that_a_discipline_spoils(tmp_path):
    tested = module()
    tested.disciplines.append(lambda loss, sectors: loss * torch.nan)
    with pytest.raises(NonFiniteError, match="the training loss is not finite, though all that was traced is"):
        fit(tested, batches(None), tmp_path)


def test_large_gradients_are_finite_and_a_failed_fit_is_forgotten(tmp_path):
    tested = module()
    guard = FiniteGuard()
    with pytest.raises(NonFiniteError):
        fit(tested, batches(1.9e19, None), tmp_path / "a", guard=guard, accumulate_grad_batches=2)
    tested.disciplines.append(lambda loss, sectors: loss * 1e25)
    tested.cross_attention_clip = None
    tested.configure_optimizers = lambda: torch.optim.SGD(tested.parameters(), lr=1e-30)
    assert fit(tested, batches(None), tmp_path / "b", guard=guard).global_step == 1


def test_a_loss_that_overflows_names_what_did(tmp_path):
    tested = module()
    with pytest.raises(NonFiniteError, match=r"step 1: .* 'reconstruction loss', in samples of label 1"):
        fit(tested, batches(None, 1.9e19), tmp_path)  # its square does not fit into float32
    assert all(parameter.isfinite().all() for parameter in tested.parameters())


def test_an_eigensolver_that_refuses_is_explained(tmp_path):
    tested = module()
    with torch.no_grad():
        tested.net.encoder[0].weight.mul_(1e30)
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        fit(tested, batches(None), tmp_path)
    (note,) = caught.value.__notes__
    assert "step 0: the first tensor that is not finite is 'encoder output', in samples of label 0, label 1" in note
    assert (tmp_path / "checkpoints" / "last_good.ckpt").exists()


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You.re resuming from a checkpoint that ended")
def test_the_last_good_checkpoint_goes_on(tmp_path):
    with pytest.raises(NonFiniteError):
        fit(module(), batches(None, None, torch.nan, None), tmp_path)
    path = tmp_path / "checkpoints" / "last_good.ckpt"
    trainer = fit(module(), batches(*[None] * 4), tmp_path / "again", path, {"weights_only": True}, max_epochs=2)
    assert trainer.global_step == 2 * 4  # from the batch that failed


class Plain(LightningModule):
    """Says nothing of itself; the gradient of its weight is infinite at zero, its loss is not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return self.weight.abs().sqrt().sum() * batch[0].mean()

    def validation_step(self, batch, batch_idx):
        return None


def test_a_gradient_in_a_module_that_is_not_traced(tmp_path):
    tested = Plain()
    with pytest.raises(NonFiniteError, match="the batch and the loss are finite, the gradient of 'weight' is not"):
        fit(tested, batches(None), tmp_path)
    assert tested.weight == 0
    with pytest.raises(NonFiniteError, match="step 0: the batch is not finite"):
        fit(tested, batches(torch.nan), tmp_path / "again")


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    with pytest.raises(NonFiniteError, match="a fast_dev_run saves no checkpoint"):
        fit(module(), batches(torch.nan), tmp_path, fast_dev_run=1)
    assert list(tmp_path.rglob("*.ckpt")) == []
