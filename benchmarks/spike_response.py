"""Spike response: size and direction of an optimizer's updates after a gradient spike, and their recovery time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_STEPS_BEFORE = 10


@dataclass(frozen=True)
class SpikeResponse:
    """Root mean squares of updates around a spike, and the steps until they are again what they would have been.

    Attributes:
        before: median of the ten steps before the spike.
        at_spike: of the step that takes it.
        extreme: after that step, the one whose ratio to the twin's of the same step is farthest from 1.
        extreme_after: how many steps after the spike that is.
        size_recovery: from how many steps after the spike on the root mean square stays near the twin's, to the end of
            the run; 0 is from the spike itself on, None is not within the run.
        direction_recovery: the same of the cosine between the update and the twin's.
    """

    before: float
    at_spike: float
    extreme: float
    extreme_after: int
    size_recovery: int | None
    direction_recovery: int | None


def replay(make_optimizer: Callable[[list[nn.Parameter]], Optimizer], gradients: Tensor) -> Tensor:
    """Updates of an optimizer that is fed given gradients.

    The weight is set to zero before every step, so that an update is exact whatever came before; weight decay and
    anything else that looks at the weight has nothing to act on.

    Args:
        make_optimizer: from a list of one parameter; its learning rate must be above 0.
        gradients: (T, m, n) floating.

    Returns:
        (T, m, n), the changes of the weight divided by the learning rate.

    Raises:
        ValueError: the gradients are not (T, m, n), or the learning rate is not above 0.
    """
    if gradients.ndim != 3:
        raise ValueError(f"gradients must be (T, m, n), got {tuple(gradients.shape)}")
    weight = nn.Parameter(gradients.new_zeros(gradients.shape[1:]))
    optimizer = make_optimizer([weight])
    rate = float(optimizer.param_groups[0]["lr"])
    if not rate > 0:
        raise ValueError(f"make_optimizer must set a learning rate above 0, got {rate}")
    updates = torch.empty_like(gradients)
    for gradient, update in zip(gradients, updates, strict=True):
        with torch.no_grad():
            weight.zero_()
        weight.grad = gradient.clone()
        optimizer.step()
        torch.div(weight.detach(), rate, out=update)
    return updates


def spiked(gradients: Tensor, step: int, scale: float) -> Tensor:
    """Gradients (T, m, n) with that of one step, counted from 0, scaled.

    Raises:
        ValueError: the step is not in the run.
    """
    if not 0 <= step < len(gradients):
        raise ValueError(f"step must be in [0, {len(gradients)}), the steps of the run, got {step}")
    gradients = gradients.clone()
    gradients[step] *= scale
    return gradients


def spike_response(
    updates: Tensor, twin: Tensor, spike_step: int, *, tolerance: float = 0.1, cosine: float = 0.9
) -> SpikeResponse:
    """Compares a run with its twin, which had the same gradients without the spike.

    A twin rather than the level before the spike, because updates drift by themselves: second moments and Kronecker
    factors need tens of steps to warm up, and a spike may come before that.

    Args:
        updates: (T, m, n) floating, of the run with the spike, see :func:`replay`.
        twin: same shape, of the run without it.
        spike_step: counted from 0.
        tolerance: how far the root mean square may be from the twin's, relative to it, in (0, 1).
        cosine: the least cosine between the two updates, in (0, 1).

    Returns:
        The figures; a cosine with an update of zero counts as 0.

    Raises:
        ValueError: the shapes differ, or an argument is out of range.
    """
    if updates.ndim != 3 or updates.shape != twin.shape:
        raise ValueError(f"updates and twin must both be (T, m, n), got {tuple(updates.shape)} and {tuple(twin.shape)}")
    if not 0 < spike_step < len(updates) - 1:
        raise ValueError(
            f"spike_step must have steps before and after it, be in [1, {len(updates) - 2}], got {spike_step}"
        )
    for name, value in (("tolerance", tolerance), ("cosine", cosine)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    run, plain = updates.flatten(1).double(), twin.flatten(1).double()
    size, plain_size = (rows.square().mean(1).sqrt() for rows in (run, plain))
    cosines = nn.functional.cosine_similarity(run, plain)
    after = spike_step + 1
    extreme = after + int((size[after:] / plain_size[after:]).log().abs().argmax())
    return SpikeResponse(
        before=float(size[max(0, spike_step - _STEPS_BEFORE) : spike_step].quantile(0.5)),
        at_spike=float(size[spike_step]),
        extreme=float(size[extreme]),
        extreme_after=extreme - spike_step,
        size_recovery=_recovery((size - plain_size).abs() <= tolerance * plain_size, spike_step),
        direction_recovery=_recovery(cosines >= cosine, spike_step),
    )


def _recovery(near: Tensor, spike_step: int) -> int | None:
    """Steps after the spike from which on all of (T,) is true."""
    far = (~near[spike_step:]).nonzero()
    steps = int(far.max()) + 1 if len(far) else 0
    return steps if spike_step + steps < len(near) else None
