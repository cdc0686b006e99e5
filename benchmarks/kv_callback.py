"""Benchmark of the KVCacheCompression callback: its overhead in validation.

    python benchmarks/kv_callback.py                # 2,000 random images through the demo's network
    python benchmarks/kv_callback.py --rounds 15    # steadier medians

A validation is measured by its epoch hooks, batches and logging, on the CPU, with rounds that alternate between the
rows. Amortised: one validation in every_n_epochs is measured, at the default of the callback.
"""

import argparse
import inspect
import logging
import tempfile
import warnings
from functools import partial

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from timing import machine, medians
from torch.utils.data import DataLoader, TensorDataset

from eigenscope.callbacks import KVCacheCompression
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.nn import DeiT
from eigenscope.text import text_table


class _Silent(KVCacheCompression):
    """Without the table, the card and the figures, which a fit makes once, at its end."""

    def on_validation_end(self, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # such as on the number of workers
    seed_everything(0, verbose=False)
    net = DeiT(32, num_classes=100, patch_size=4, width=96, depth=4, num_heads=4, mlp_ratio=2.0)
    module = ImageClassificationModule(net, partial(torch.optim.SGD, lr=0.1))
    data = DataLoader(TensorDataset(torch.rand(2000, 3, 32, 32), torch.randint(100, (2000,))), batch_size=128)
    rows: dict[str, list[Callback]] = {"without": [], "measured": [_Silent()]}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name, callbacks in rows.items():
            trainer = Trainer(
                accelerator="cpu",
                logger=TensorBoardLogger(folder, name=name),
                callbacks=callbacks,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            runs[name] = partial(trainer.validate, module, data, verbose=False)
        times = medians(runs, options.rounds, "cpu")
    every = inspect.signature(KVCacheCompression).parameters["every_n_epochs"].default
    extra = times["measured"] - times["without"]
    times[f"amortised, 1 of {every}"] = times["without"] + extra / every
    print(f"{machine()}; validation of 2,000 images, median of {options.rounds}")
    cells = [[name, f"{time:.3f}", f"{time / times['without'] - 1:+.1%}"] for name, time in times.items()]
    print(text_table(["validation", "seconds", "added"], cells))


if __name__ == "__main__":
    main()
