"""Loading an optimizer's state as it was saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def keep_saved_dtypes(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Gives each tensor of a state just loaded the dtype, and the bits, that it was saved with.

    torch casts floating-point state to the dtype of its parameter while loading, which rounds the float32 factors and
    moments of a bfloat16 weight.

    Args:
        optimizer: after its ``load_state_dict(state_dict)``; changed in place.
        state_dict: as given there.
    """
    saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(saved_ids, parameters, strict=True):
        for key, saved in state_dict["state"].get(index, {}).items():
            loaded = optimizer.state[parameter][key]
            if isinstance(saved, torch.Tensor) and loaded.dtype != saved.dtype:
                optimizer.state[parameter][key] = saved.to(loaded.device, copy=True)
