"""Muon at a stated matmul precision, with a momentum that schedules cycle as they do Adam's."""

import math
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from eigenscope.optim.common import MatmulPrecision, check_precision, matmul_precision
from eigenscope.optim.emerging import check_functions, missing_from_library
from eigenscope.optim.matrix_optimizer import MatrixOptimizer


class Muon(MatrixOptimizer):
    """Muon: momentum, orthogonalised by Newton–Schulz iteration (Jordan 2024), with decoupled weight decay.

    M ← β M + (1−β) G; the update of an m×n weight is the nearest semi-orthogonal matrix to M, or to (1−β) G + β M with
    ``nesterov``, times ``update_rms`` √max(m, n), which has that root mean square in every entry (Liu et al. 2025,
    arXiv:2502.16982, who take 0.2 because AdamW's updates have it, so that a learning rate serves both).

    An update does not depend on the scale of the gradients, down to float32's smallest normal number: momentum is
    divided by its largest magnitude before the iteration, whose own norm is not taken below 1e-7. Gradients of zero
    leave nothing but weight decay. Momentum is float32 whatever the parameter's dtype.

    A group keeps β as ``betas``, a tuple of one, where Adam keeps its β₁: a schedule that cycles momentum then cycles
    both. The iteration is emerging-optimizers', whose own Muon computes it in bfloat16 unless told otherwise.

    Args:
        params: 2-D parameters, with or without names, or groups of them.
        lr: learning rate.
        betas: (β,), of the momentum.
        weight_decay: λ in p ← p − lr·λp.
        nesterov: looks one step ahead.
        num_ns_steps: iterations, of the quintic with Jordan's coefficients.
        update_rms: root mean square of an update of full rank before the learning rate, about.
        fp32_matmul_prec: of the iteration's products; ``"medium"`` computes them in bfloat16.

    Raises:
        ValueError: an argument is out of range, or a parameter is not 2-D or not real.
        ImportError: another version of emerging-optimizers is installed.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float] = (0.95,),
        weight_decay: float = 0.01,
        *,
        nesterov: bool = True,
        num_ns_steps: int = 5,
        update_rms: float = 0.2,
        fp32_matmul_prec: MatmulPrecision = "highest",
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay, "update_rms": update_rms}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if len(betas) != 1 or not 0 <= betas[0] < 1:
            raise ValueError(f"betas must be one number in [0, 1), got {betas}")
        if num_ns_steps < 1:
            raise ValueError(f"num_ns_steps must be at least 1, got {num_ns_steps}")
        check_precision("fp32_matmul_prec", fp32_matmul_prec)
        _library()  # refused now rather than at the first step
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "num_ns_steps": num_ns_steps,
            "update_rms": update_rms,
            "fp32_matmul_prec": fp32_matmul_prec,
        }
        super().__init__(params, defaults)

    def _update_parameters(self) -> None:
        for parameter, gradient, group in self._with_gradients():
            self._update(parameter, gradient, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (beta,) = group["betas"]
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - beta)
        with matmul_precision(group["fp32_matmul_prec"]):
            ahead = gradient.lerp(momentum, beta) if group["nesterov"] else momentum
            ahead = ahead / ahead.abs().amax().clamp_min(torch.finfo(ahead.dtype).tiny)
            update = _library().newton_schulz(ahead, steps=group["num_ns_steps"], coefficient_type="quintic")
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = group["update_rms"] * math.sqrt(max(parameter.shape))
        parameter.add_(update, alpha=-group["lr"] * scale)


@cache
def _library() -> ModuleType:
    try:
        from emerging_optimizers.orthogonalized_optimizers import muon_utils
    except ImportError as error:
        raise missing_from_library("no emerging_optimizers.orthogonalized_optimizers.muon_utils") from error
    check_functions(muon_utils, {"newton_schulz": {"x", "steps", "coefficient_type"}})
    return muon_utils  # type: ignore[no-any-return]  # emerging-optimizers ships no types
