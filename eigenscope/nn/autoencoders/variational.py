"""Diagonal Gaussian posteriors against a standard normal prior: draws, KL divergence and its loss term."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eigenscope.noise.streams import Streams

LOG_VARIANCES = (-8.0, 4.0)
"""Least and largest log σ² of a posterior."""


def bounded_log_variance(raw: Tensor) -> Tensor:
    """Any real numbers as log σ² within :data:`LOG_VARIANCES`, elementwise.

    Middle + half width · softsign: slope 1 in the middle, −2, and falling as one over the square of the distance, so
    that the KL term can bring a variance back from anywhere, which a clamp's gradient of 0 would not let it.
    """
    least, most = LOG_VARIANCES
    middle, half = (most + least) / 2, (most - least) / 2
    return middle + half * F.softsign((raw - middle) / half)


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | Streams | None = None) -> Tensor:
    """Standard normal numbers on the device and in the dtype of ``like``, from a source on any device.

    Args:
        shape: of the numbers.
        like: says where and of what kind they are.
        generator: a generator, None for torch's global one on that device, or streams, one for each entry of the
            first dimension, whose numbers then do not depend on what else is drawn with it; these are as fine as
            float32.

    Raises:
        ValueError: there are more or fewer streams than entries.
    """
    if isinstance(generator, Streams):
        if len(generator) != shape[0]:
            raise ValueError(f"generator must have a stream for each of {shape[0]} samples, got {len(generator)}")
        return generator.normal(math.prod(shape[1:])).view(*shape).to(like)
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def reparameterise(mu: Tensor, log_variance: Tensor, generator: torch.Generator | Streams | None = None) -> Tensor:
    """A draw z = μ + σ ε with ε ~ N(0, 1), differentiable in both (Kingma and Welling 2014). In evaluation use μ.

    Args:
        mu: any shape.
        log_variance: log σ², same shape.
        generator: source of ε, see :func:`standard_normal`.
    """
    return mu + (0.5 * log_variance).exp() * standard_normal(mu.shape, mu, generator)


def kl_divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − 1 − log σ²) in nats, elementwise, of the same shape."""
    return 0.5 * (mu.square() + torch.expm1(log_variance) - log_variance)


def free_bits(kl_per_dimension: Tensor, floor: float, mean: Tensor | None = None) -> Tensor:
    """max(mean over the batch of KL_j, floor), a number a dimension (Kingma et al. 2016, equation 15).

    A dimension whose mean over everything but the last axis is below the floor has no gradient: information up to the
    floor is free. It is the mean that is compared, not each sample.

    Args:
        kl_per_dimension: (..., d) in nats.
        floor: in nats a dimension, at least 0.
        mean: (d,), what is compared where the batch is a part of a larger one; None is the mean of what is given.

    Returns:
        (d,) in nats.

    Raises:
        ValueError: the floor is negative or not finite.
    """
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor must be a finite number >= 0, got {floor}")
    own = _batch_mean(kl_per_dimension)
    return own.clamp_min(floor) if mean is None else own.where(mean > floor, floor)


def active_dimensions(kl_per_dimension: Tensor, threshold: float = 0.1) -> Tensor:
    """Which dimensions carry information: those whose KL divergence, as a mean over the data, is above a threshold.

    The threshold must be well above the free bits, which a dimension takes whether they serve or not: twice. The
    usual criterion, a variance of μ over the data above 0.01 (Burda et al. 2016), cannot see a collapse when bits are
    free: 0.05 nat allow a variance of 0.1, and in a collapsed run all dimensions had 0.07 to 0.1.

    Args:
        kl_per_dimension: (..., d) in nats, or its mean (d,).
        threshold: in nats a dimension.

    Returns:
        (d,) bool.
    """
    return _batch_mean(kl_per_dimension) > threshold


def has_collapsed(active: Tensor) -> bool:
    """Whether fewer than half of the dimensions (d,) are active: the posterior has collapsed to the prior."""
    return 2 * int(active.sum()) < len(active)


def kl_weight(step: int, beta: float, warmup_steps: int) -> float:
    """The weight of the KL term: linear from 0 at step 0 to β at ``warmup_steps``, then β (Sønderby et al. 2016).

    Raises:
        ValueError: an argument is negative.
    """
    for name, value in (("step", step), ("beta", beta), ("warmup_steps", warmup_steps)):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    return beta if step >= warmup_steps else beta * step / warmup_steps


def _batch_mean(kl_per_dimension: Tensor) -> Tensor:
    return kl_per_dimension.reshape(-1, kl_per_dimension.shape[-1]).mean(0)
