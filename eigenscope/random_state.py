"""State of all random number generators of a process, as plain values and tensors."""

# ruff: noqa: NPY002  the global stream of numpy is what is kept

import random
from typing import Any

import numpy as np
import torch

from eigenscope.noise import stream_key


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the random numbers of Python, numpy, torch on the CPU and, where there is one, on ``device``.

    Returns:
        Plain values and tensors, which :func:`torch.load` reads without executing code.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": (version, words, gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what :func:`random_state` returned; a device that was of another kind then keeps its stream."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def seed_streams(*parts: int) -> None:
    """Reseeds all random number generators, as a function of integers such as (seed, rank, step)."""
    seed = stream_key(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    torch.manual_seed(seed)  # of all devices
