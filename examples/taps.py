"""Do singular values of mid-depth tokens help a small transformer? Two arms, one seed, one table.

python examples/taps.py                        # about 3 minutes on two CPU cores
python examples/taps.py --seeds 0 1 2          # with intervals; any other option of compare works as well
"""

import sys
from pathlib import Path

from eigenscope import cli

CONFIGS = Path(__file__).parents[1] / "configs"


def main(options: list[str]) -> None:
    """Trains what has not been trained yet, and says what the taps changed."""
    arms = [part for name in ("demo", "demo_svd") for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    _, tapped = cli.main(["compare", *arms, *options])
    change = tapped.best.difference
    margin = f" ± {change.half_width:.2f}" if change.half_width is not None else ", one seed: no interval"
    print(f"SVD taps change the best validation accuracy by {change.mean:+.2f} points{margin}.")


if __name__ == "__main__":
    main(sys.argv[1:])
