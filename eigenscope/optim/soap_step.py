"""Steps of SOAP for one matrix: Kronecker factors, eigenbases, projected gradient, over emerging-optimizers."""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from eigenscope.optim.emerging import check_functions, missing_from_library

_NEEDED = {
    "update_kronecker_factors": {"kronecker_factor_list", "grad", "shampoo_beta"},
    "update_kronecker_factors_kl_shampoo": {"kronecker_factor_list", "grad", "shampoo_beta", "eigenbasis_list", "eps"},
    "update_eigenbasis_and_exp_avgs": {
        "kronecker_factor_list",
        "eigenbasis_list",
        "exp_avg_sq",
        "exp_avg",
        "use_eigh",
        "power_iter_steps",
    },
    "precondition": {"x", "eigenbasis_list", "dims"},
}
_ADAM = {"calculate_adam_update": {"betas", "eps", "correct_bias", "nesterov", "step"}}
_LEAST_RMS = 1e-7  # emerging-optimizers'


@cache
def library() -> ModuleType:
    """The module of emerging-optimizers that these functions call, imported at the first call.

    Raises:
        ImportError: another version is installed.
    """
    try:
        from emerging_optimizers.soap import soap
    except ImportError as error:
        raise missing_from_library("no emerging_optimizers.soap.soap") from error
    check_functions(soap, _NEEDED)
    check_functions(soap.update_functions, _ADAM)
    return soap  # type: ignore[no-any-return]  # emerging-optimizers ships no types


def init_state(parameter: Tensor) -> dict[str, Any]:
    """The state of a matrix before its first step, float32."""
    m, n = parameter.shape
    like: dict[str, Any] = {"dtype": torch.float32, "device": parameter.device}
    return {
        "step": 0,
        "exp_avg": torch.zeros(m, n, **like),
        "exp_avg_sq": torch.zeros(m, n, **like),
        "L": torch.zeros(m, m, **like),
        "R": torch.zeros(n, n, **like),
        "Q_L": torch.eye(m, **like),
        "Q_R": torch.eye(n, **like),
    }


def update_factors(state: dict[str, Any], gradient: Tensor, beta: float, kl_eps: float | None) -> None:
    """Takes a gradient (m, n) into the factors L and R, in place: Shampoo's if ``kl_eps`` is None, or KL-Shampoo's."""
    factors = [state["L"], state["R"]]
    if kl_eps is None:
        library().update_kronecker_factors(factors, gradient, beta)
    else:
        bases = [state["Q_L"], state["Q_R"]]
        library().update_kronecker_factors_kl_shampoo(factors, gradient, beta, bases, kl_eps)


def update_eigenbases(state: dict[str, Any], use_eigh: bool) -> None:
    """Renews the eigenbases of the factors, by ``eigh`` or one power iteration and QR, and Adam's moments with them."""
    bases, moment, square = library().update_eigenbasis_and_exp_avgs(
        [state["L"], state["R"]],
        [state["Q_L"], state["Q_R"]],
        state["exp_avg_sq"],
        state["exp_avg"],
        use_eigh=use_eigh,
        power_iter_steps=1,
    )
    state.update(Q_L=bases[0], Q_R=bases[1], exp_avg=moment, exp_avg_sq=square)


def project(state: dict[str, Any], matrix: Tensor) -> Tensor:
    """Q_Lᵀ X Q_R of a matrix X (m, n)."""
    projected_grad: Tensor = library().precondition(matrix, [state["Q_L"], state["Q_R"]], dims=[[0], [0]])
    return projected_grad


def project_back(state: dict[str, Any], matrix: Tensor) -> Tensor:
    """Q_L X Q_Rᵀ of a matrix X (m, n)."""
    projected_grad: Tensor = library().precondition(matrix, [state["Q_L"], state["Q_R"]], dims=[[0], [1]])
    return projected_grad


def adam_update(state: dict[str, Any], projected_grad: Tensor, **settings: Any) -> Tensor:
    """Adam's update for a gradient in the eigenbases (m, n); its moments follow in place.

    Args:
        state: of the matrix.
        projected_grad: the gradient.
        **settings: ``betas``, ``eps`` and ``step``, counted from 1.
    """
    update: Tensor = library().update_functions.calculate_adam_update(
        projected_grad, state["exp_avg"], state["exp_avg_sq"], correct_bias=True, nesterov=False, **settings
    )
    return update


def clip_update_rms(update: Tensor, max_rms: float) -> None:
    """Scales an update down in place to a root mean square of at most ``max_rms``; 0 leaves it."""
    if max_rms > 0:
        rms = update.square().mean().sqrt()
        update.mul_((max_rms / (rms + _LEAST_RMS)).clamp(max=1))
