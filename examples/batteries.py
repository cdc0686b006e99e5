"""Which of many miniature autoencoders serves which noise? A small array, a few steps, no Lightning.

python examples/batteries.py
"""

import torch

from eigenscope.nn import BatteryArray
from eigenscope.noise import NOISE_TYPES, draw_noise


def main(steps: int = 100) -> None:
    """Trains four batteries, each on one noise distribution, and prints the error of every battery on each of them."""
    torch.manual_seed(0)
    laws = torch.tensor([NOISE_TYPES.index(name) for name in ("gaussian", "uniform", "pink", "brown")])
    net = BatteryArray(len(laws), num_points=16, dim=4, patch_size=4, hidden=32, depth=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def images(epoch: int) -> torch.Tensor:
        """(batteries, 1, 3, 16, 16), an image of its distribution for each."""
        return draw_noise(laws, seed=0, epoch=epoch, samples=torch.arange(len(laws)), image_size=16)[:, None]

    for step in range(steps):
        batch = images(step)
        loss = (net(batch)[0] - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = images(steps)
    names = [NOISE_TYPES[int(law)] for law in laws]
    print("battery of".ljust(12) + "".join(name.rjust(10) for name in names))
    with torch.no_grad():
        errors = [
            (net(test.roll(-shift, 0))[0] - test.roll(-shift, 0)).square().mean((1, 2, 3, 4)) for shift in range(4)
        ]
    for row, name in enumerate(names):
        cells = [float(errors[(column - row) % 4][row]) for column in range(4)]
        print(name.ljust(12) + "".join(f"{cell:10.3f}" for cell in cells))


if __name__ == "__main__":
    main()
