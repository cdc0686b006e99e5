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
    kept = distortions().to(variances.device)
    cost = direction_cost + plane_cost * torch.arange(1, MAX_BITS + 1, dtype=torch.float64, device=kept.device)
    first = 1 + int(((1 - kept[1:]) / cost).argmax())
    # steps: 0 → first, first → first + 1, …, 7 → 8
    gains = torch.cat([1 - kept[first : first + 1], kept[first:-1] - kept[first + 1 :]])
    costs = torch.full_like(gains, plane_cost)
    costs[0] = cost[first - 1]
    steps = variances[..., None] * (gains / costs)
    order = steps.flatten(-2).argsort(dim=-1, descending=True, stable=True)
    direction = order // len(gains)
    gained = (variances[..., None] * gains).flatten(-2).gather(-1, order)
    paid = costs[order % len(gains)].cumsum(-1)
    if budget is None:
        assert distortion is not None
        allowed = variances.sum(-1) - distortion.double()
        reached = gained.cumsum(-1)
        if (reached[..., -1] < allowed).any():
            least = (variances.sum(-1) - reached[..., -1]).max()
            raise ValueError(f"distortion must be at least what {MAX_BITS} bits leave, up to {least}, got {distortion}")
        taken = (reached - gained) < allowed[..., None]
    else:
        taken = (paid <= budget) & (gained > 0)
    bits = (taken * torch.where(order % len(gains) == 0, first, 1)).to(torch.int64)
    bits = torch.zeros_like(variances, dtype=torch.int64).scatter_add(-1, direction, bits)
    return bits if budget is None else _spend_rest(bits, variances, budget, plane_cost, direction_cost, order, first)


def _spend_rest(
    bits: Tensor, variances: Tensor, budget: float, plane_cost: float, direction_cost: float, order: Tensor, first: int
) -> Tensor:
    """Gives whole planes that remain to directions that have bits, in the order of gain; to the first if none has."""
    stored = bits > 0
    spent = stored.sum(-1) * direction_cost + bits.sum(-1) * plane_cost
    planes = ((budget - spent) / plane_cost * (1 + 1e-12)).floor()
    count = MAX_BITS + 1 - first
    direction, step = order // count, order % count
    before = bits.gather(-1, direction)
    open_step = (before > 0) & (first + step > before)  # this step would bring the direction to first + step bits
    taken = open_step & (open_step.cumsum(-1) <= planes[..., None])
    bits = bits.scatter_add(-1, direction, taken.to(torch.int64))
    alone = math.floor((budget - direction_cost) / plane_cost * (1 + 1e-12))
    largest = variances == variances.amax(-1, keepdim=True)
    largest = largest & (largest.cumsum(-1) == 1) & (variances > 0) & ~stored.any(-1, keepdim=True)
    return torch.where(largest, min(alone, MAX_BITS), bits)
