import copy
import hashlib
import math
import os
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader

from eigenscope.callbacks import FiniteGuard, NonFiniteError
from eigenscope.lightning_modules import SpectralAutoencoderModule
from eigenscope.lightning_modules.metrics import MeanLoss
from eigenscope.nn import PatchSVAE
from eigenscope.optim import REKLS, SOAP, Muon, SplitOptimizer


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
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **{"max_epochs": 1, "callbacks": [guard or FiniteGuard()]} | options,
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
    tested.loss_transforms.append(lambda loss, point_sets: loss * torch.nan)
    with pytest.raises(NonFiniteError, match="the training loss is not finite, though all that was traced is"):
        fit(tested, batches(None), tmp_path)


def test_large_gradients_are_finite_and_a_failed_fit_is_forgotten(tmp_path):
    tested = module()
    guard = FiniteGuard()
    with pytest.raises(NonFiniteError):
        fit(tested, batches(1.9e19, None), tmp_path / "a", guard=guard, accumulate_grad_batches=2)
    tested.loss_transforms.append(lambda loss, point_sets: loss * 1e25)
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


class Weights(LightningModule):
    """A sum of weights times a factor, whose gradients are that factor and more with every step."""

    def __init__(self, factor, hook=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
        self.factor = factor
        if hook is not None:
            self.weight.register_hook(hook)

    def validation_step(self, batch):
        """None."""

    def training_step(self, batch):
        return (self.weight * self.factor).mul(1 / 64).sum() * (batch.mean() / batch.mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("precision", "factor"), [("32-true", 3e38), ("16-true", 3e4), ("bf16-true", 3e38), ("64-true", 1e308)]
)
def test_large_finite_batches_and_gradients_pass_though_their_sums_overflow(tmp_path, precision, factor):
    tested = Weights(factor, lambda gradient: gradient * 64)
    trainer = fit(tested, [torch.full((2**17,), 1.0)] * 2, tmp_path / "large", precision=precision)
    assert trainer.global_step == 2
    gradient = tested.weight.grad
    assert gradient.isfinite().all()
    assert not gradient.sum().isfinite()
    with pytest.raises(NonFiniteError, match="the gradient of 'weight' is not"):
        fit(Weights(1.0, lambda gradient: gradient * torch.nan), [torch.ones(4)], tmp_path, precision=precision)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, torch.inf), (torch.bfloat16, -torch.inf), (torch.float32, torch.nan), (torch.float64, torch.inf)],
)
def test_one_entry_of_any_dtype_is_found_in_any_container(tmp_path, dtype, value):
    largest = torch.full((4, 64), torch.finfo(dtype).max, dtype=dtype)
    fit(Nothing(), [{"a": largest, "b": OrderedDict(c=[largest])}], tmp_path / "finite")
    spoilt = largest.clone()
    spoilt[2, 3] = value
    batches = ({"a": largest, "b": OrderedDict(c=[spoilt])}, UserDict(x=spoilt), Pair(largest, spoilt))
    for number, batch in enumerate(batches):
        with pytest.raises(NonFiniteError, match="step 0: the batch is not finite"):
            fit(Nothing(), [batch], tmp_path / str(number))


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor


class Nothing(LightningModule):
    """Learns nothing from a batch of any kind."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def validation_step(self, batch):
        """None."""

    def training_step(self, batch):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_gradients_that_no_loss_scale_mends_stop(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    tested = Weights(1.0, lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match="step 2: the batch and the loss are finite, the gradient of 'weight' is"):
        fit(tested, [torch.ones(4)] * 8, tmp_path, plugins=[plugin])
    assert scaler.get_scale() == 1.0


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


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Classifier(LightningModule):
    """A network with dropout, running statistics and metrics; its logged means are Lightning's own."""

    def __init__(self, optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        layers = {"square": Square(), "hidden": nn.Linear(12, 8), "norm": nn.BatchNorm1d(8), "active": nn.ReLU()}
        layers = {"flat": nn.Flatten()} | layers | {"drop": nn.Dropout(0.5), "head": nn.Linear(8, 4)}
        self.body = nn.Sequential(OrderedDict(layers))
        self.mean = MeanLoss()
        self.optimizer = optimizer or (lambda named: torch.optim.AdamW(named, lr=1e-2))
        self.spoil_loss = -1
        self.own_means = []

    def configure_optimizers(self):
        return self.optimizer(list(self.named_parameters()))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.body(images), labels)
        self.mean.update(loss, len(images))
        self.log("own", self.mean, on_step=False, on_epoch=True)
        self.log("theirs", loss, on_step=False, on_epoch=True)
        return loss * (torch.nan if batch_idx == self.spoil_loss else 1)

    def on_train_epoch_end(self):
        self.own_means.append([float(self.trainer.callback_metrics[name]) for name in ("own", "theirs")])

    def validation_step(self, batch, batch_idx):
        return None


def small_batches(*values):
    """One batch a value, which one pixel of it holds."""
    out = []
    for number, value in enumerate(values):
        generator = torch.Generator().manual_seed(number)
        images, labels = torch.randn(6, 3, 2, 2, generator=generator), torch.randint(4, (6,), generator=generator)
        if value is not None:
            images[2, 0, 0, 0] = value
        out.append((images, labels))
    return out


MATRICES = {"SOAP": SOAP, "REKLS": REKLS, "Muon": Muon}
OPTIMIZERS = {
    "AdamW": None,
    "SGD": lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9, weight_decay=0.1),
    "fused": lambda named: torch.optim.AdamW(named, lr=1e-2, fused=True),
} | {
    name: lambda named, matrix=matrix: SplitOptimizer(
        named, lambda some: matrix(some, lr=1e-2), lambda some: torch.optim.AdamW(some, lr=1e-2), exclude=[]
    )
    for name, matrix in MATRICES.items()
}


class Recorder(Callback):
    """Keeps weights, buffers and the optimizer's state as they are after each batch."""

    def __init__(self):
        self.states, self.steps = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = {"weights": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}
        self.states.append(copy.deepcopy(state))
        self.steps.append(trainer.global_step)


def assert_same(one, other):
    a, b = tree_flatten(one), tree_flatten(other)
    assert a[1] == b[1]
    for x, y in zip(a[0], b[0], strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def skipping(tmp_path, tested, data, **options):
    recorder, guard = Recorder(), FiniteGuard("skip", 3)
    fit(tested, data, tmp_path, guard=guard, callbacks=[recorder, guard], **options)
    return recorder, guard


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_neither_weights_nor_optimizer(name, tmp_path, capsys):
    data = small_batches(None, None, torch.nan, 1e30, None)
    tested = Classifier(OPTIMIZERS[name])
    recorder, guard = skipping(tmp_path, tested, data)
    assert_same(recorder.states[1], recorder.states[2])
    assert_same(recorder.states[1], recorder.states[3])  # its batch is finite, the square of it is not
    weight = [state["weights"]["body.hidden.weight"] for state in recorder.states]
    assert not torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[3], weight[4])
    assert (guard.skipped, recorder.steps[-1]) == (2, 5)
    assert data[2][0].isnan().sum() == 1  # as it was
    first, second = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert first == "step 2 is skipped, 1 of at most 3: the batch is not finite"
    assert second.startswith("step 3 is skipped, 2 of at most 3: the first tensor that is not finite is the output of ")
    assert second.endswith("'body.square' (Square)")


@pytest.mark.parametrize("value", [torch.nan, 1e30])  # of the second the square is not finite
def test_figures_of_the_epoch_are_those_of_the_other_steps(tmp_path, value):
    dropped, twin = Classifier(), Classifier()
    for each in (dropped, twin):
        each.body.drop.p = 0.0  # its random numbers are not put back
    skipping(tmp_path / "a", dropped, small_batches(None, None, value))
    skipping(tmp_path / "b", twin, small_batches(None, None))
    assert dropped.own_means == twin.own_means
    assert_same(dropped.state_dict(), twin.state_dict())


def test_a_first_step_that_is_skipped_leaves_nothing(tmp_path):
    tested = Classifier()
    recorder, _ = skipping(tmp_path, tested, small_batches(torch.inf, None))
    assert recorder.states[0]["optimizer"] == {}
    assert_same(recorder.states[0]["weights"], Classifier().state_dict())
    assert all(map(math.isfinite, tested.own_means[0]))


def test_accumulated_gradients_are_one_step(tmp_path):
    data = small_batches(None, None, None, torch.nan, None, None)
    recorder, guard = skipping(tmp_path, Classifier(), data, accumulate_grad_batches=2)
    assert guard.skipped == 1
    assert_same(recorder.states[1]["optimizer"], recorder.states[3]["optimizer"])
    assert_same(recorder.states[1]["weights"], recorder.states[3]["weights"])
    assert not torch.equal(*(recorder.states[n]["weights"]["body.hidden.weight"] for n in (3, 5)))


def test_a_gradient_scaler_goes_on(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    tested = Classifier()
    tested.spoil_loss = 1
    recorder, guard = skipping(tmp_path, tested, small_batches(None, None, None), plugins=[plugin])
    assert guard.skipped == 1
    assert_same(recorder.states[0], recorder.states[1])
    assert not torch.equal(*(recorder.states[n]["weights"]["body.hidden.weight"] for n in (1, 2)))


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You.re resuming from a checkpoint that ended")
def test_beyond_the_limit_it_stops_and_resuming_goes_on_counting(tmp_path):
    data = small_batches(None, torch.nan, torch.nan, None)
    with pytest.raises(NonFiniteError) as caught:
        fit(Classifier(), data, tmp_path, guard=FiniteGuard("skip", 1))
    path = tmp_path / "checkpoints" / "last_good.ckpt"
    assert str(caught.value) == (
        f"step 2: the batch is not finite, after 1 skipped steps, of at most 1; the state before it is in {path}"
    )
    again, how = FiniteGuard("skip", 2), {"weights_only": True}
    fit(Classifier(), data, tmp_path / "again", path, how, guard=again, max_epochs=1)
    assert again.skipped == 2
    with pytest.raises(NonFiniteError, match="after 2 skipped steps, of at most 2"):
        fit(Classifier(), data, tmp_path / "third", path, how, guard=again, max_epochs=2)
    fit(Classifier(), small_batches(None), tmp_path / "new", guard=again)
    assert again.skipped == 0


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_weight_that_is_not_finite_stops(tmp_path, policy):
    tested = Classifier()
    with torch.no_grad():
        tested.body.head.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"step 0: the weight 'body.head.bias' is not finite"):
        fit(tested, small_batches(None), tmp_path, guard=FiniteGuard(policy))


def test_the_module_is_named(tmp_path):
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        fit(module(), batches(None, 1e30), tmp_path / "a")
    (note,) = caught.value.__notes__
    assert "the first tensor that is not finite is 'encoder output', in samples of label 1; " in note
    assert "the first module to give one is 'net.encoder.2.layers.0' (LayerNorm)" in note
    spoilt = Classifier()
    spoilt.spoil_loss = 0
    with pytest.raises(NonFiniteError, match="loss is not finite, though the outputs of all modules are; the state"):
        fit(spoilt, small_batches(None), tmp_path / "b")


class Decomposing(Classifier):
    """Logs, and then refuses what is not finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        squares = self.body.square(batch[0][:, 0])
        return loss + 0 * torch.linalg.cholesky(torch.eye(2) + squares @ squares.mT).sum()


def test_a_decomposition_in_a_module_that_is_not_traced(tmp_path):
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        fit(Decomposing(), small_batches(None, 1e30), tmp_path)
    (note,) = caught.value.__notes__
    assert note.startswith("step 1: the first tensor that is not finite is the output of 'body.square' (Square); the ")


def test_the_last_good_checkpoint_has_the_statistics_before_the_step(tmp_path):
    twin = Classifier()
    fit(twin, small_batches(None), tmp_path / "twin")
    with pytest.raises(NonFiniteError):
        fit(Classifier(), small_batches(None, 1e30), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last_good.ckpt", weights_only=True)
    assert_same(dict(saved["state_dict"]), dict(twin.state_dict()))


def skip_on_both(folder):
    """What a rank is left with if the batch of the second is not finite in the second step."""
    data = small_batches(None, torch.nan if os.environ["RANK"] == "1" else None, None)
    tested = Classifier()
    two = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    recorder, guard = skipping(Path(folder), tested, data, **two)
    first, second, third = (hashlib.sha256(str(tree_flatten(state)).encode()).hexdigest() for state in recorder.states)
    weights = [parameter.detach().tolist() for parameter in tested.parameters()]
    return guard.skipped, first == second, second == third, tested.own_means[0][0], weights


@pytest.mark.xdist_group("ddp")
def test_two_ranks_skip_together(tmp_path, two_ranks):
    one, other = two_ranks.run(skip_on_both, str(tmp_path))
    assert one.value[:3] == (1, True, False)
    assert one.value == other.value
    assert math.isfinite(one.value[3])
    assert "step 1 is skipped, 1 of at most 3: rank 1: the batch is not finite" in one.printed
    assert "skipped" not in other.printed


@pytest.mark.parametrize(("argument", "value"), [("policy", "ignore"), ("max_skipped", 0)])
def test_arguments_out_of_range(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .*, got {value!r}$"):
        FiniteGuard(**{argument: value})
