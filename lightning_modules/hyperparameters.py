"""The hyperparameters that go into a checkpoint."""

import inspect
from importlib import import_module

from lightning.pytorch import LightningModule

from eigenscope.adapters.lightning_names import given_hyperparameters


def save_given_hyperparameters(module: LightningModule) -> None:
    """Saves what the command line built the module from, which are plain values; from Python they are live objects.

    Left out is what the data would have told the network had it asked: jsonargparse drops a linked argument that a
    class does not take, but Lightning keeps it here, and no network could be built from it again.
    """
    given = given_hyperparameters()
    if given is None:
        return
    package, _, name = given["net"]["class_path"].rpartition(".")
    taken = inspect.signature(getattr(import_module(package), name)).parameters
    arguments = given["net"]["init_args"]
    for argument in [argument for argument in arguments if argument not in taken]:
        del arguments[argument]
    module.save_hyperparameters()
