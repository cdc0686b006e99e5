"""NaN/Inf localisation: the first non-finite tensor of a training step."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out
from torchmetrics import Metric

from eigenscope.adapters.torch_names import any_compiled
from eigenscope.protocols import Traced


def first_non_finite(pl_module: LightningModule, batch: Any, batch_idx: int, loss_finite: bool) -> str | None:
    """Describes the first non-finite tensor of a step, found by computing the step once more without gradients.

    In the order of a step: weights, batch, the outputs of modules or what a
    :class:`~eigenscope.protocols.Traced` module yields, the loss, gradients from the last parameter to the first.

    The step changes metrics, buffers and random streams as any other does.

    Args:
        pl_module: the module.
        batch: of the step.
        batch_idx: its number in the epoch.
        loss_finite: whether the loss was.

    Returns:
        The first place, with the module and, if the module is traced, the samples; None if all of it is finite here.
    """
    weight = non_finite_weight(pl_module)
    if weight is not None:
        return weight
    with _outputs(pl_module) as outputs, _once_more(pl_module):
        if isinstance(pl_module, Traced):
            found = _in_trace(pl_module, batch)
        elif not all(tensor.isfinite().all() for tensor in float_tensors(batch)):
            return "the batch is not finite"
        else:
            found = None
            if pl_module.automatic_optimization:  # or the step would be one of the optimizer too
                with suppress(LinAlgError):
                    takes_number = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
                    pl_module.training_step(*([batch, batch_idx] if takes_number else [batch]))
    if found is not None:
        return found if not outputs else f"{found}; the first module to give one is {outputs[0]}"
    if outputs:
        return f"the first tensor that is not finite is the output of {outputs[0]}"
    if not loss_finite:
        seen = "all that was traced is" if isinstance(pl_module, Traced) else "the outputs of all modules are"
        return f"the training loss is not finite, though {seen}"
    for name, parameter in reversed(list(pl_module.named_parameters())):  # about the order of the backward pass
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the batch and the loss are finite, the gradient of '{name}' is not"
    return None


def non_finite_weight(pl_module: LightningModule) -> str | None:
    """Names the first weight that is not finite itself, so that no step with it can be."""
    for name, parameter in pl_module.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight '{name}' is not finite"
    return None


def float_tensors(values: Any) -> Iterator[Tensor]:
    """The floating-point and complex tensors among nested sequences, mappings and dataclasses."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex():
            yield values.coalesce().values() if values.is_sparse else values
    elif isinstance(values, Mapping):
        for part in values.values():
            yield from float_tensors(part)
    elif isinstance(values, (tuple, list)):
        for part in values:
            yield from float_tensors(part)
    elif is_dataclass(values) and not isinstance(values, type):
        for field in fields(values):
            yield from float_tensors(getattr(values, field.name))


def _in_trace(traced: Traced, batch: Any) -> str | None:
    for name, tensor in traced.trace(batch):
        samples = (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[:, 0]
        if len(samples):
            kinds = sorted({traced.describe(batch, int(sample)) for sample in samples})
            return f"the first tensor that is not finite is '{name}', in samples of {', '.join(kinds)}"
    return None


@contextmanager
def _outputs(pl_module: LightningModule) -> Iterator[list[str]]:
    """Collects the modules inside whose outputs are not finite, in the order in which they finish."""
    found: list[str] = []

    def note(name: str, module: nn.Module, output: Any) -> None:
        if not found and not all(tensor.isfinite().all() for tensor in float_tensors(output)):
            found.append(f"'{name}' ({type(module).__name__})")

    with ExitStack() as hooks:
        for name, module in pl_module.named_modules():
            if module is not pl_module and not isinstance(module, Metric):
                handle = module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
                hooks.callback(handle.remove)
        yield found


@contextmanager
def _once_more(pl_module: LightningModule) -> Iterator[None]:
    """Lets a step be computed again without being logged."""
    # compiled networks may ignore hooks that are registered after compilation
    eagerly = torch.compiler.set_stance("force_eager") if any_compiled(pl_module) else nullcontext()
    pl_module.log = lambda *_, **__: None  # type: ignore[method-assign]
    pl_module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        with torch.no_grad(), eagerly:
            yield
    finally:
        del pl_module.log, pl_module.log_dict
