"""Reconstruction losses: Huber, log-cosh, Student-t and others, with tails from quadratic to logarithmic."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

ReconstructionLoss = Literal["mse", "huber", "log_cosh"]


def reconstruction_errors(reconstructions: Tensor, targets: Tensor, kind: ReconstructionLoss) -> Tensor:
    """The mean over each sample of a function of e = reconstruction − target.

    Args:
        reconstructions: (B, ...).
        targets: same shape.
        kind: ``mse`` is e²; ``huber`` e²/2 up to |e| = 1 and |e| − ½ beyond (Huber 1964); ``log_cosh`` log cosh e,
            without overflow.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: the kind is another.
    """
    error = _errors(reconstructions, targets)
    if kind == "mse":
        return error.square().mean(1)
    if kind == "huber":
        return F.huber_loss(error, torch.zeros_like(error), reduction="none").mean(1)
    if kind == "log_cosh":
        return (error.abs() + F.softplus(-2 * error.abs()) - math.log(2)).mean(1)
    raise ValueError(f"kind must be one of {', '.join(get_args(ReconstructionLoss))}, got {kind!r}")


def student_t_errors(
    reconstructions: Tensor, targets: Tensor, log_scale: Tensor, degrees_of_freedom: float = 4.0
) -> Tensor:
    """The mean over each sample of the negative log likelihood of e = reconstruction − target under Student's t.

    −log p(e) = (ν + 1)/2 · log(1 + e²/(ν σ²)) + log σ + ½ log(ν π) + log Γ(ν/2) − log Γ((ν + 1)/2), which in e grows
    as a logarithm only. Trained with the reconstruction, σ tends to the spread of its errors; it falls without bound
    only where they vanish.

    Args:
        reconstructions: (B, ...).
        targets: same shape.
        log_scale: log σ, a scalar or (...) as a sample, usually a parameter.
        degrees_of_freedom: ν > 0; 1 is the Cauchy distribution, large ν tend to the Gaussian. e² / (ν σ²) must fit the
            dtype.

    Returns:
        (B,) in nats per number, at least float32.

    Raises:
        ValueError: ν is not a positive finite number.
    """
    nu = degrees_of_freedom
    if not 0 < nu < math.inf:
        raise ValueError(f"degrees_of_freedom must be a positive finite number, got {nu}")
    log_scale = log_scale.flatten()  # a number per sample's number, or one for all
    scaled = _errors(reconstructions, targets) * (-log_scale).exp()
    if nu < 1e4:
        constant = 0.5 * math.log(nu * math.pi) + math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2)
    else:  # its series, since large logarithms cancel
        constant = 0.5 * math.log(2 * math.pi) + 1 / (4 * nu)
        nu = min(nu, 1e18)  # the Gaussian, to all digits
    return ((nu + 1) / 2 * (scaled.square() / nu).log1p() + log_scale).mean(1) + constant


def _errors(reconstructions: Tensor, targets: Tensor) -> Tensor:
    dtype = torch.promote_types(reconstructions.dtype, torch.float32)
    return (reconstructions.to(dtype) - targets).flatten(1)
