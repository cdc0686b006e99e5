"""SOAP and REKLS: Adam in the eigenbases of Shampoo's Kronecker factors, at a stated matmul precision."""

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from eigenscope.linalg.tf32 import emulate_tf32 as emulating_tf32
from eigenscope.optim.common import MatmulPrecision, check_precision, matmul_precision
from eigenscope.optim.matrix_optimizer import MatrixOptimizer
from eigenscope.optim.soap_step import (
    adam_update,
    clip_update_rms,
    init_state,
    library,
    project,
    project_back,
    update_eigenbases,
    update_factors,
)


class SOAP(MatrixOptimizer):
    """SOAP over emerging-optimizers, with both matmul precisions explicit and ``"highest"`` unless asked otherwise.

    For an m×n gradient G it keeps L ← β L + (1−β) G Gᵀ and R ← β R + (1−β) Gᵀ G, their eigenbases Q_L and Q_R by one
    step of orthogonal iteration an update, and Adam's moments of Q_Lᵀ G Q_R (Vyas et al. 2024, arXiv:2409.11321). With
    ``use_kl_shampoo`` the factors are those of KL-Shampoo (Lin et al. 2025, arXiv:2509.03378): G R⁻¹ Gᵀ / n in L, and
    Gᵀ L⁻¹ G / m in R, the inverses through the current eigenbases with eigenvalues not below ``eps``.

    ``"high"`` lets these products use TF32 on devices that have it: 10 bits of mantissa instead of 23. After a
    gradient much larger than those before it, small eigenvalues of a factor are then lost in the rounding of large
    ones; KL-Shampoo divides by them, and its factors diverge.

    State per parameter, by torch's usual ``optimizer.state[parameter]``: ``step``, ``exp_avg`` and ``exp_avg_sq``
    (m, n), ``L`` and ``Q_L`` (m, m), ``R`` and ``Q_R`` (n, n), in float32 whatever the parameter's dtype, also after
    ``load_state_dict``. A step costs O(m³ + n³).

    As in Adam, gradients well below ``eps`` make updates smaller in proportion; a gradient of zero makes none. The
    factors hold squares: a gradient whose norm is beyond 1e19, or with KL-Shampoo beyond 1e19 √eps, overflows them, and
    the eigensolver raises torch's LinAlgError.

    On a CPU the elementwise part of a step runs as it is written instead of compiled: compiling takes seconds and a
    C++ compiler there, and gains nothing.

    Args:
        params: 2-D parameters, with or without names, or groups of them.
        lr: learning rate.
        betas: of Adam's moments.
        shampoo_beta: β of the factors.
        eps: of Adam's denominator, and KL-Shampoo's smallest eigenvalue; above 0.
        weight_decay: λ in p ← p − lr·λp.
        fp32_matmul_prec: of the factors' and the gradient's products.
        qr_fp32_matmul_prec: of the products that update the eigenbases.
        max_update_rms: updates of a larger root mean square are scaled down to it; 0 leaves them.
        use_kl_shampoo: KL-Shampoo's factors instead of Shampoo's.
        emulate_tf32: rounds operands as TF32 does wherever the precision is not ``"highest"`` and the device has no
            TF32; see :func:`eigenscope.linalg.emulate_tf32`.

    Raises:
        ValueError: an argument is out of range, or a parameter is not 2-D or not real.
        ImportError: another version of emerging-optimizers is installed.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        fp32_matmul_prec: MatmulPrecision = "highest",
        qr_fp32_matmul_prec: MatmulPrecision = "highest",
        max_update_rms: float = 0.0,
        use_kl_shampoo: bool = False,
        emulate_tf32: bool = False,
    ) -> None:
        for name, value in {
            "lr": lr,
            "weight_decay": weight_decay,
            "max_update_rms": max_update_rms,
        }.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        least = torch.finfo(torch.float32).tiny
        if not least <= eps < math.inf:  # 0 would divide 0 by 0 where a gradient is zero
            raise ValueError(f"eps must be a finite number >= {least:.3g}, float32's smallest, got {eps}")
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas}")
        for name, beta in {"betas[0]": betas[0], "betas[1]": betas[1], "shampoo_beta": shampoo_beta}.items():
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1), got {beta}")
        for name, precision in {
            "fp32_matmul_prec": fp32_matmul_prec,
            "qr_fp32_matmul_prec": qr_fp32_matmul_prec,
        }.items():
            check_precision(name, precision)
        library()  # refused now rather than at the first step
        self.fp32_matmul_prec = fp32_matmul_prec
        self.qr_fp32_matmul_prec = qr_fp32_matmul_prec
        self.max_update_rms = max_update_rms
        self.use_kl_shampoo = use_kl_shampoo
        self.use_eigh = False
        self.emulate_tf32 = emulate_tf32
        defaults = {"lr": lr, "betas": betas, "shampoo_beta": shampoo_beta, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _update_parameters(self) -> None:
        with self._arithmetic():
            for parameter, gradient, group in self._with_gradients():
                self._update(parameter, gradient, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(init_state(parameter))
        step, beta = state["step"] + 1, group["shampoo_beta"]
        beta = 1 - (1 - beta) / (1 - beta**step)  # for the zeros that the factors begin with
        with matmul_precision(self.fp32_matmul_prec):
            update_factors(state, gradient, beta, group["eps"] if self.use_kl_shampoo else None)
        with matmul_precision(self.qr_fp32_matmul_prec):
            update_eigenbases(state, self.use_eigh or step == 1)  # iteration continues from a basis
        parameter.add_(parameter, alpha=-group["weight_decay"] * group["lr"])
        with matmul_precision(self.fp32_matmul_prec):
            projected_grad = project(state, gradient)
        update = adam_update(state, projected_grad, betas=group["betas"], eps=group["eps"], step=step)
        with matmul_precision(self.fp32_matmul_prec):
            update = project_back(state, update)
        clip_update_rms(update, self.max_update_rms)
        parameter.add_(update, alpha=-group["lr"])
        state["step"] = step

    def __getstate__(self) -> dict[str, Any]:
        # torch's own leaves out the settings that are not options of a group
        settings = {key: value for key, value in vars(self).items() if not key.startswith("_") and key != "step"}
        return {**super().__getstate__(), **settings}

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        with ExitStack() as stack:
            if on_cpu:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self.emulate_tf32:
                stack.enter_context(emulating_tf32())
            yield


class REKLS(SOAP):
    """Realtime Eigen Kullback–Leibler SOAP: SOAP with KL-Shampoo's factors and a full eigendecomposition every step.

    Everything else is as in :class:`SOAP`. emerging-optimizers' own REKLS takes no precision and computes at
    ``"high"``.

    Args:
        params: 2-D parameters, with or without names, or groups of them.
        lr: learning rate.
        betas: of Adam's moments.
        shampoo_beta: β of the factors.
        eps: of Adam's denominator, and the smallest eigenvalue; above 0.
        weight_decay: λ in p ← p − lr·λp.
        fp32_matmul_prec: of the factors' and the gradient's products.
        qr_fp32_matmul_prec: of the products that carry the moments from one eigenbasis to the next.
        max_update_rms: updates of a larger root mean square are scaled down to it; 0 leaves them.
        emulate_tf32: rounds the operands as TF32 would, as in :class:`SOAP`.

    Raises:
        ValueError: an argument is out of range, or a parameter is not 2-D or not real.
        ImportError: another version of emerging-optimizers is installed.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        fp32_matmul_prec: MatmulPrecision = "highest",
        qr_fp32_matmul_prec: MatmulPrecision = "highest",
        max_update_rms: float = 0.0,
        emulate_tf32: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            shampoo_beta,
            eps,
            weight_decay,
            fp32_matmul_prec=fp32_matmul_prec,
            qr_fp32_matmul_prec=qr_fp32_matmul_prec,
            max_update_rms=max_update_rms,
            use_kl_shampoo=True,
            emulate_tf32=emulate_tf32,
        )
        self.use_eigh = True


def is_soap(optimizer: object) -> bool:
    """Whether it is a SOAP of emerging-optimizers or of this package."""
    theirs = sys.modules.get("emerging_optimizers.soap")  # before it is imported nobody has one of its optimizers
    return isinstance(optimizer, SOAP) or (theirs is not None and isinstance(optimizer, theirs.SOAP))
