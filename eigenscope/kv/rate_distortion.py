"""How small an error any code of so many bits can have."""

import torch
from torch import Tensor


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
