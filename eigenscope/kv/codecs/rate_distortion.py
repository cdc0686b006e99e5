"""Rate–distortion lower bound, and the allocation of bits by reverse water-filling."""

import math

import torch
from torch import Tensor

from eigenscope.kv.codecs.bit_planes import MAX_BITS, distortions


def rate_distortion_bound(spectrum: Tensor, bits: float | Tensor) -> Tensor:
    """The least squared error of Gaussian vectors at a given rate, by reverse water-filling.

    A Gaussian vector whose covariance has the eigenvalues λ cannot be coded by R bits with less error than
    D = Σ min(θ, λ_i), where the water level θ is such that R = Σ ½ log₂⁺(λ_i / θ) (Cover & Thomas, *Elements of
    Information Theory*, theorem 10.3.3). With the eigenvalues sorted, each number m of those above the water has one
    level, log₂ θ = (Σ_{i≤m} log₂ λ_i − 2R) / m, and the right m is the last whose λ_m is above its own. Other
    distributions of the same covariance can be coded with less. Bits that describe the code itself are not counted.

    Args:
        spectrum: (..., n) floating or integer, eigenvalues >= 0 in any order; those of several heads that share a
            budget are one spectrum.
        bits: R/n >= 0, bits per element, a number or (...) that broadcasts against the leading shape.

    Returns:
        (...) float64, D in the units of ``spectrum``, summed over its n entries; divided by the spectrum's sum and
        rooted it is the relative Frobenius error.

    Raises:
        ValueError: an eigenvalue or number of bits is negative or not finite, or the spectrum is empty.
    """
    if spectrum.ndim == 0 or spectrum.shape[-1] == 0 or not ((spectrum >= 0) & (spectrum < torch.inf)).all():
        raise ValueError(f"spectrum must be (..., n) of n >= 1 finite eigenvalues >= 0, got {spectrum}")
    rate = torch.as_tensor(bits, dtype=torch.float64, device=spectrum.device)
    if not ((rate >= 0) & (rate < torch.inf)).all():
        raise ValueError(f"bits must be finite and >= 0, got {bits}")
    values = spectrum.double() + torch.zeros_like(rate)[..., None]
    values = values.sort(dim=-1, descending=True).values
    n = values.shape[-1]
    above = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    level = (values.clamp_min(torch.finfo(torch.float64).tiny).log2().cumsum(-1) - 2 * n * rate[..., None]) / above
    m = (values.log2() > level).sum(-1, keepdim=True)
    below = torch.arange(n, device=values.device) >= m
    water = level.gather(-1, (m - 1).clamp_min(0)).exp2()
    bound: Tensor = (m * water)[..., 0] + (values * below).sum(-1)
    return bound


def allocate_bits(
    variances: Tensor,
    *,
    budget: float | None = None,
    distortion: Tensor | None = None,
    plane_cost: float = 1.0,
    direction_cost: float = 0.0,
    remaining: Tensor | None = None,
) -> Tensor:
    """Integer bits per direction with the least distortion for a budget, or the least cost for a distortion.

    At b bits a direction of variance λ keeps λ·c(b) of it, with c of
    :func:`eigenscope.kv.codecs.bit_planes.distortions`, and costs nothing at 0 bits, ``direction_cost`` + b ×
    ``plane_cost`` at more. What a direction gains by a step to more bits, per cost, falls from step to step once the
    first step goes straight to the number of bits that gains most per cost, which pays for the basis. Taking the steps
    of all directions in the order of gain per cost is then optimal (Fox, *Discrete optimization via marginal analysis*,
    1966): no allocation that costs at most as much as the steps taken has less distortion, and where directions cost
    nothing of their own that is the optimum for every budget. What remains of a budget when a direction's first step
    does not fit goes, plane by plane, to directions taken before. It is one sort, whatever the number of directions.

    Args:
        variances: (..., n) floating, >= 0. The leading dimensions are allocated independently.
        budget: what the n directions may cost together. Either this or ``distortion``.
        distortion: (...) what Σ λ·c(b) may be.
        plane_cost: > 0.
        direction_cost: >= 0.
        remaining: (..., n, 9) instead of c, for each direction its own, decreasing and convex from 1 bit on.

    Returns:
        (..., n) int64 from 0 to 8. Directions of no variance get none.

    Raises:
        ValueError: both or neither of ``budget`` and ``distortion`` are given, the budget does not pay for one
            direction at one bit, or the distortion is less than 8 bits everywhere leave.
    """
    if (budget is None) == (distortion is None):
        raise ValueError(f"give either budget or distortion, got {budget} and {distortion}")
    if budget is not None and budget < plane_cost + direction_cost:
        needed = f"{plane_cost + direction_cost}, the cost of one direction at one bit"
        raise ValueError(f"budget must be at least {needed}, got {budget}")
    variances = variances.double()
    kept = distortions().to(variances.device) if remaining is None else remaining.double()
    kept = kept.expand(*variances.shape, MAX_BITS + 1)
    steps = torch.arange(1, MAX_BITS + 1, device=kept.device)
    cost = direction_cost + plane_cost * steps.double()
    first = 1 + ((kept[..., :1] - kept[..., 1:]) / cost).argmax(-1, keepdim=True)
    # the step that ends at b bits: none below first, 0 → first, then one by one
    jump = kept[..., :1] - kept[..., 1:]
    gains = variances[..., None] * torch.where(steps == first, jump, kept[..., :-1] - kept[..., 1:]) * (steps >= first)
    costs = torch.where(steps == first, cost, plane_cost)
    order = (gains / costs).flatten(-2).argsort(dim=-1, descending=True, stable=True)
    gained = gains.flatten(-2).gather(-1, order)
    if budget is None:
        assert distortion is not None
        start = (variances * kept[..., 0]).sum(-1)
        allowed = start - distortion.double()
        reached = gained.cumsum(-1)
        if (reached[..., -1] < allowed).any():
            least = (start - reached[..., -1]).max()
            raise ValueError(f"distortion must be at least what {MAX_BITS} bits leave, up to {least}, got {distortion}")
        taken = (reached - gained) < allowed[..., None]
    else:
        paid = (costs.flatten(-2).gather(-1, order) * (gained > 0)).cumsum(-1)
        taken = (paid <= budget) & (gained > 0)
    bits = _reached(taken, order, first)
    return bits if budget is None else _spend_rest(bits, variances, budget, plane_cost, direction_cost, order, first)


def _reached(taken: Tensor, order: Tensor, first: Tensor) -> Tensor:
    """Bits (..., n) after the steps ``taken``, of those in ``order`` (..., n × 8)."""
    direction, ends = order // MAX_BITS, order % MAX_BITS + 1
    start = first.squeeze(-1).gather(-1, direction)
    size = torch.where(ends == start, start, 1) * (ends >= start)
    bits = torch.zeros_like(first.squeeze(-1))
    return bits.scatter_add(-1, direction, taken * size)


def _spend_rest(
    bits: Tensor,
    variances: Tensor,
    budget: float,
    plane_cost: float,
    direction_cost: float,
    order: Tensor,
    first: Tensor,
) -> Tensor:
    """Gives whole planes that remain to directions that have bits, in the order of gain; to the first if none has."""
    stored = bits > 0
    spent = stored.sum(-1) * direction_cost + bits.sum(-1) * plane_cost
    planes = ((budget - spent) / plane_cost * (1 + 1e-12)).floor()
    direction, ends = order // MAX_BITS, order % MAX_BITS + 1
    before = bits.gather(-1, direction)
    open_step = (before > 0) & (ends > before)  # this step would bring the direction to as many bits
    taken = open_step & (open_step.cumsum(-1) <= planes[..., None])
    bits = bits.scatter_add(-1, direction, taken.to(torch.int64))
    alone = math.floor((budget - direction_cost) / plane_cost * (1 + 1e-12))
    largest = variances == variances.amax(-1, keepdim=True)
    largest = largest & (largest.cumsum(-1) == 1) & (variances > 0) & ~stored.any(-1, keepdim=True)
    return torch.where(largest, min(alone, MAX_BITS), bits)
