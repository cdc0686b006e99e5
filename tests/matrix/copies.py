"""Callback that copies and pickles the module in a step: neither takes along the trainer, the data or the parser."""

import copy
import io
import pickle
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

PROGRAM = (ArgumentParser, Callback, DataLoader, LightningCLI, LightningDataModule, LRScheduler, Optimizer, Trainer)
BESIDE_WEIGHTS = 300_000  # bytes: hyperparameters, metrics, names


class Copies(Callback):
    """Copies the module in a step, attached to the trainer and with what callbacks have added; looks at the end too."""

    affects_training = False

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copies give the outputs of the module."""
        if batch_idx > 0:
            return
        loader: Any = trainer.train_dataloader
        parts = (getattr(loader, name, None) for name in ("dataset", "collate_fn", "worker_init_fn"))
        data = checked_pickle(pl_module, *parts)
        if not isinstance(loader, DataLoader):  # of gradients, which no network takes
            return
        results = []
        with torch.random.fork_rng(devices=[]):
            for each in (pl_module, copy.deepcopy(pl_module), pickle.loads(data)):
                torch.manual_seed(0)
                results.append(tree_leaves(each.eval()(batch[0])))
        pl_module.train()
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=0, atol=0, equal_nan=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A copy of a trained module holds no more."""
        checked_pickle(pl_module)
        checked_pickle(copy.deepcopy(pl_module))


def checked_pickle(module: LightningModule, *more: Any) -> bytes:
    """The pickle of a module, as large as its weights. ``more`` is what loader processes get, nothing but the data."""
    data, kinds = pickled(module)
    assert [kind for kind in kinds if issubclass(kind, (*PROGRAM, Dataset))] == []
    assert len(data) < sum(part.nbytes for part in (*module.parameters(), *module.buffers())) + BESIDE_WEIGHTS
    assert [kind for kind in pickled(more)[1] if issubclass(kind, (*PROGRAM, LightningModule))] == []
    return data


def pickled(thing: Any) -> tuple[bytes, set[type]]:
    """Its pickle, and the types of all that is in it."""
    kinds: set[type] = set()

    class Recorder(pickle.Pickler):
        def persistent_id(self, part: Any) -> None:
            kinds.add(type(part))

    file = io.BytesIO()
    Recorder(file).dump(thing)
    return file.getvalue(), kinds
