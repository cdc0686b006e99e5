"""What an optimizer of torch cannot compute in float16."""

import torch
from torch.optim import Optimizer

from eigenscope.optim.split import SplitOptimizer


def check_eps(optimizer: Optimizer) -> None:
    """Refuses an optimizer of torch whose ``eps`` is 0 in the precision of its parameters.

    Adam and its kin divide by √v + ε in the dtype of the parameter. In float16 their usual ε of 1e-8 is 0, and so is
    v = (1 − β₂) g² of a gradient g below 5e-3: 0/0 is NaN. Optimizers of other packages, and SOAP, REKLS and Muon,
    keep their state in float32.

    Raises:
        ValueError: it is; the message names it and what is allowed.
    """
    if isinstance(optimizer, SplitOptimizer):
        for part in (optimizer.matrix, optimizer.other):
            if part is not None:
                check_eps(part)
        return
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if not isinstance(eps, float) or eps == 0:
            continue
        for dtype in {parameter.dtype for parameter in group["params"] if parameter.is_floating_point()}:
            if float(torch.tensor(eps, dtype=torch.float64).to(dtype)) == 0:
                raise ValueError(
                    f"--trainer.precision must be 32-true, bf16-mixed, bf16-true or 16-mixed for "
                    f"{type(optimizer).__name__} with eps {eps:g}, got 16-true: it divides by the root of squared "
                    f"gradients plus eps, and both are 0 in {str(dtype).removeprefix('torch.')}; eps 1e-3 would not be"
                )
