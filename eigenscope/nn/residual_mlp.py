"""The MLP of constant width that encodes and decodes patches."""

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + Linear(GELU(Linear(LayerNorm(x)))) at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., width) to the same shape."""
        out: Tensor = x + self.layers(x)
        return out


def residual_mlp(inputs: int, hidden: int, outputs: int, depth: int) -> nn.Sequential:
    """Linear(inputs, hidden) → GELU → ``depth`` residual blocks → Linear(hidden, outputs)."""
    blocks = (ResidualBlock(hidden) for _ in range(depth))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), *blocks, nn.Linear(hidden, outputs))
