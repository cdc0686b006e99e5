"""What does TF32 do to the updates of SOAP after one gradient 1000 times too large?

python examples/spike.py
"""

import torch
from torch import Tensor, nn

from eigenscope.optim import SOAP


def updates_of(precision: str, gradients: Tensor) -> Tensor:
    """The updates that SOAP makes of gradients (T, m, n), each from a weight of zeros."""
    weight = nn.Parameter(torch.zeros(gradients.shape[1:]))
    optimizer = SOAP([weight], lr=1.0, fp32_matmul_prec=precision, qr_fp32_matmul_prec=precision, emulate_tf32=True)
    updates = []
    for gradient in gradients:
        weight.data.zero_()
        weight.grad = gradient.clone()
        optimizer.step()
        updates.append(weight.detach().clone())
    return torch.stack(updates)


def main(steps: int = 70, spike: int = 50) -> None:
    """Prints the size of updates around the spike, in fp32 and in (emulated) TF32."""
    gradients = torch.randn(steps, 64, 32, generator=torch.Generator().manual_seed(0))
    gradients[spike] *= 1000
    for precision in ("highest", "high"):
        updates = updates_of(precision, gradients)
        sizes = updates.square().mean((1, 2)).sqrt()
        shown = ", ".join(f"{sizes[spike + after]:.3f} after {after}" for after in (0, 1, 5, 10))
        print(f"{precision}: root mean square {sizes[spike - 1]:.3f} before the spike; {shown} steps")


if __name__ == "__main__":
    main()
