"""Linear probe: accuracy of a linear classifier on the pixels of the built-in synthetic images.

    python benchmarks/linear_probe.py

Multinomial logistic regression on the centred pixels of the training set, by L-BFGS to convergence, for several
penalties; the best test accuracy of them is the figure to quote, which favours the linear classifier.
"""

import torch
import torch.nn.functional as F

from eigenscope.data import draw_images
from eigenscope.text import text_table

TRAIN, TEST = 10_000, 2_000


def fit(x: torch.Tensor, labels: torch.Tensor, penalty: float) -> torch.Tensor:
    weights = torch.zeros(x.shape[1] + 1, 100, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scores(x, weights), labels) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def scores(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return x @ weights[:-1] + weights[-1]


def main() -> None:
    splits = {split: draw_images(0, split, torch.arange(n)) for split, n in (("train", TRAIN), ("test", TEST))}
    mean = splits["train"][0].float().div(255).mean(0)
    data = {split: ((images.float() / 255 - mean).flatten(1), labels) for split, (images, labels) in splits.items()}
    rows = []
    for penalty in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3):
        weights = fit(*data["train"], penalty)
        accuracy = [100 * (scores(x, weights).argmax(1) == y).float().mean().item() for x, y in data.values()]
        rows.append([f"{penalty:g}", *(f"{a:.1f}" for a in accuracy)])
    print(f"Linear classifier on pixels, {TRAIN} training and {TEST} test images, 100 classes")
    print(text_table(["L2 penalty", "train %", "test %"], rows))


if __name__ == "__main__":
    main()
