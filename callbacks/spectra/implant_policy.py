"""Freezing, unfreezing and learning rate of implanted weights that were pretrained elsewhere."""

from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from eigenscope.nn import ImplantedVAE

Policy = Literal["freeze", "unfreeze", "reduced"]


class ImplantPolicy(Callback):
    """Freezes a network's implants, unfreezes them at a step, or trains them at a reduced rate.

    It looks for the implants in the module or in a network within it, see :class:`~eigenscope.nn.ImplantedVAE`.
    Without this callback they are trained as everything else. It keeps no state: what it does follows from the step,
    so that a run resumes exactly, from within an epoch too.

    ==========  =====================================================================================================
    freeze      The weights require no gradient, and are not in the optimizer.
    unfreeze    They are in the optimizer from the start; before step ``unfreeze_at`` their gradients are dropped
                (None, not 0, with which weight decay would move them and Adam's averages and step counter begin):
                they then start as if the optimizer were new. The backward pass is complete in every step, as DDP
                expects.
    reduced     After each step w ← w + ``lr_factor`` (w⁺ − w). For an optimizer whose step is its rate times a
                direction that does not depend on the rate (SGD, Adam, AdamW with its decay), that is training at
                ``lr_factor`` times the rate, under any schedule.
    ==========  =====================================================================================================

    Args:
        policy: ``freeze``, ``unfreeze`` or ``reduced``.
        unfreeze_at: number of the first step that trains them, counted as ``trainer.global_step``: that many steps
            leave them alone; for ``unfreeze`` only.
        lr_factor: in (0, 1], for ``reduced`` only.

    Raises:
        ValueError: an argument is out of range, missing or of another policy; or, when training starts, the module
            has no implants.
    """

    affects_training = True

    def __init__(self, policy: Policy, unfreeze_at: int | None = None, lr_factor: float | None = None) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, got {policy!r}")
        for name, value, owner in (("unfreeze_at", unfreeze_at, "unfreeze"), ("lr_factor", lr_factor, "reduced")):
            if (value is not None) != (policy == owner):
                raise ValueError(f"{name} goes with policy {owner!r} and no other, got {value} with {policy!r}")
        if unfreeze_at is not None and unfreeze_at < 0:
            raise ValueError(f"unfreeze_at must be at least 0, got {unfreeze_at}")
        if lr_factor is not None and not 0 < lr_factor <= 1:
            raise ValueError(f"lr_factor must be in (0, 1], got {lr_factor}")
        self.policy = policy
        self.unfreeze_at = unfreeze_at
        self.lr_factor = lr_factor
        self._parameters: list[nn.Parameter] = []
        self._before: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the implants, and freezes them before the optimizer is made and DDP counts what requires gradient."""
        if stage != "fit":
            return
        networks = [network for network in pl_module.modules() if isinstance(network, ImplantedVAE)]
        if not networks:
            within = ", ".join(type(child).__name__ for child in pl_module.children()) or "no networks"
            raise ValueError(
                f"policy {self.policy!r} needs implants, and {type(pl_module).__name__} has none; it holds {within}"
            )
        networks[0].set_implants_trainable(self.policy != "freeze")
        self._parameters = list(networks[0].implant_parameters())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches to the optimizers, which are new in every fit, so that nobody sees weights of an unreduced step."""
        if self.policy == "reduced":
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(self._remember)
                optimizer.register_step_post_hook(self._reduce)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops gradients that come too early, before they are clipped."""
        if self.unfreeze_at is not None and trainer.global_step < self.unfreeze_at:
            for parameter in self._parameters:
                parameter.grad = None

    def _remember(self, *_: Any) -> None:
        self._before = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def _reduce(self, *_: Any) -> None:
        for parameter, before in zip(self._parameters, self._before, strict=True):
            parameter.copy_(torch.lerp(before, parameter, self.lr_factor or 1.0))
        self._before = []
