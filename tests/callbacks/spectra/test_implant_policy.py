import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from eigenscope.callbacks import ImplantPolicy
from eigenscope.nn.autoencoders.implants import ImplantedVAE
from eigenscope.nn.autoencoders.simplex_vae import SimplexVAE
from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.nn.batteries.battery_container import BatteryEntry, save_batteries

SMALL = {"num_points": 6, "dim": 4, "patch_size": 4, "hidden": 8, "depth": 1, "bottleneck": 8}
BATCHES = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LR = 0.01


class Training(LightningModule):
    """A network and AdamW with weight decay; deterministic."""

    def __init__(self, net, optimizer=torch.optim.AdamW):
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def training_step(self, images, batch_idx):
        reconstructions, code = self.net(images, sample=False)
        return (reconstructions - code.companded).square().mean()

    def configure_optimizers(self):
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.optimizer(trainable, lr=LR, weight_decay=0.1)


class Weights(Callback):
    """The implants' weights before the first step and after each."""

    def on_train_start(self, trainer, pl_module):
        self.seen = []
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append([p.detach().clone() for p in pl_module.net.implant_parameters()])

    @property
    def moved(self):
        return [
            any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
            for one, other in zip(self.seen, self.seen[1:], strict=False)
        ]


@pytest.fixture
def make(tmp_path):
    path = tmp_path / "batteries.safetensors"
    torch.manual_seed(1)
    save_batteries(path, BatteryArray(2, num_points=5, hidden=8), [BatteryEntry()] * 2)

    def make(optimizer=torch.optim.AdamW):
        torch.manual_seed(0)
        net = ImplantedVAE(str(path), implant_points=5, **SMALL)
        nn.init.ones_(net.gate.bias)  # so that gradients reach the batteries from the first step
        nn.init.normal_(net.to_bottleneck[0].weight)
        return Training(net, optimizer)

    return make


def fit(module, *callbacks, epochs=2, ckpt_path=None, **options):
    watch = Weights()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, watch],
        **{"enable_checkpointing": False} | options,
    )
    trainer.fit(module, DataLoader(list(BATCHES), batch_size=None), ckpt_path=ckpt_path)
    return watch, trainer


def test_frozen_implants_do_not_move_and_the_rest_does(make):
    module = make()
    before = {name: weight.clone() for name, weight in module.net.state_dict().items()}
    watch, trainer = fit(module, ImplantPolicy("freeze"))
    assert watch.moved == [False] * 8
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not held & {id(p) for p in module.net.implant_parameters()}
    for name, weight in module.net.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("batteries."), name
    assert fit(module)[0].moved == [False] * 8  # stays as it is until a policy says otherwise
    assert fit(module, ImplantPolicy("reduced", lr_factor=1.0))[0].moved == [True] * 8


@pytest.mark.parametrize("step", [0, 1, 5])
def test_implants_unfreeze_at_the_step(make, step):
    module = make()
    watch, trainer = fit(module, ImplantPolicy("unfreeze", unfreeze_at=step), gradient_clip_val=1.0)
    assert watch.moved == [False] * step + [True] * (8 - step)
    state = trainer.optimizers[0].state[next(module.net.implant_parameters())]
    assert state["step"] == 8 - step  # as if the optimizer were new
    assert trainer.optimizers[0].state[module.net.posterior.bias]["step"] == 8


def test_steps_of_the_optimizer_are_counted_and_not_batches(make):
    watch, _ = fit(make(), ImplantPolicy("unfreeze", unfreeze_at=2), accumulate_grad_batches=2)
    assert watch.moved == [False] * 5 + [True, False, True]


def test_gradients_that_were_dropped_are_not_clipped_with(make):
    """What is clipped is the gradient of what moves: the rest trains as it would with frozen implants."""
    modules = make(), make()
    for module, policy in zip(
        modules, (ImplantPolicy("unfreeze", unfreeze_at=9), ImplantPolicy("freeze")), strict=True
    ):
        fit(module, policy, gradient_clip_val=1e-3)
    for a, b in zip(*(module.net.state_dict().values() for module in modules), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_reduced_rate_is_that_factor_of_the_update(make, optimizer):
    (plain, _), (reduced, _) = fit(make(optimizer)), fit(make(optimizer), ImplantPolicy("reduced", lr_factor=0.25))
    for start, full, less in zip(plain.seen[0], plain.seen[1], reduced.seen[1], strict=True):
        torch.testing.assert_close(less - start, 0.25 * (full - start), rtol=1e-4, atol=1e-7)
    assert reduced.moved == [True] * 8


def test_a_reduced_rate_is_training_in_a_group_of_that_rate(make):
    """Over many steps, with the averages of Adam: equal to a parameter group whose rate is lower."""
    grouped, reduced = make(), make()

    def groups():
        implants = list(grouped.net.implant_parameters())
        ids = {id(p) for p in implants}
        rest = [p for p in grouped.parameters() if id(p) not in ids]
        return torch.optim.AdamW([{"params": rest}, {"params": implants, "lr": 0.25 * LR}], lr=LR, weight_decay=0.1)

    grouped.configure_optimizers = groups
    fit(grouped)
    fit(reduced, ImplantPolicy("reduced", lr_factor=0.25))
    for (name, a), b in zip(grouped.net.state_dict().items(), reduced.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "options",
    [{"policy": "freeze"}, {"policy": "unfreeze", "unfreeze_at": 5}, {"policy": "reduced", "lr_factor": 0.25}],
)
def test_a_run_resumes_exactly(make, tmp_path, options):
    whole, parts = make(), make()
    fit(whole, ImplantPolicy(**options), epochs=3)
    _, trainer = fit(parts, ImplantPolicy(**options), epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    again = make()
    fit(again, ImplantPolicy(**options), epochs=3, ckpt_path=tmp_path / "first.ckpt")
    for (name, a), b in zip(whole.net.state_dict().items(), again.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_module_without_implants_is_refused():
    with pytest.raises(ValueError, match="policy 'freeze' needs implants, and Training has none; it holds SimplexVAE"):
        fit(Training(SimplexVAE(**SMALL)), ImplantPolicy("freeze"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "melt"}, "policy must be one of freeze, unfreeze, reduced, got 'melt'"),
        ({"policy": "unfreeze"}, "unfreeze_at goes with policy 'unfreeze' and no other, got None with 'unfreeze'"),
        ({"policy": "freeze", "unfreeze_at": 3}, "unfreeze_at goes with .* got 3 with 'freeze'"),
        ({"policy": "reduced"}, "lr_factor goes with policy 'reduced' and no other, got None"),
        ({"policy": "freeze", "lr_factor": 0.1}, "lr_factor goes with .* got 0.1 with 'freeze'"),
        ({"policy": "unfreeze", "unfreeze_at": -1}, "unfreeze_at must be at least 0, got -1"),
        ({"policy": "reduced", "lr_factor": 0.0}, r"lr_factor must be in \(0, 1\], got 0.0"),
        ({"policy": "reduced", "lr_factor": float("nan")}, r"lr_factor must be in \(0, 1\], got nan"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ImplantPolicy(**options)
