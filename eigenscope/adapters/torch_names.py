"""torch's private names: the mode that sees every operation, what ``compile`` leaves, a state's load and cast, loaders.

Nothing here imports more than torch, so the mathematics may use it.
"""

import functools
import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from eigenscope.adapters import Library, MissingNameError, report_fallback

_TORCH = Library("torch")
_Hooks = list[Callable[..., Any]]


def _dispatch_mode() -> type:
    """``TorchDispatchMode``: a context whose ``__torch_dispatch__`` is called in the place of every operation.

    Where torch has none, a context in which operations stay as they are, and stderr says so.
    """
    try:
        found: type = _TORCH.get("torch.utils._python_dispatch", "TorchDispatchMode")
        return found
    except MissingNameError as error:
        missing = error

    class NoDispatchMode:
        def __enter__(self) -> None:
            report_fallback("TF32 is not emulated and matrix products stay in float32", missing)

        def __exit__(self, *_: object) -> None:
            pass

    return NoDispatchMode


#: Of torch, or its substitute; see :func:`_dispatch_mode`.
TorchDispatchMode: Any = _dispatch_mode()


def aten_products() -> dict[Any, int]:
    """Of those operations of torch that multiply matrices and have a private name, where the first operand stands."""
    try:
        return {_TORCH.get(torch.ops.aten, "_addmm_activation"): 1}
    except MissingNameError:  # nothing can call it then
        return {}


def is_compiled(module: nn.Module) -> bool | None:
    """Whether a module, without those inside it, was compiled by ``compile`` or ``torch.compile``.

    Returns:
        None, and a note on stderr, where torch does not tell.
    """
    try:
        # the second is the name of the original in what torch.compile returns
        return _TORCH.get(module, "_compiled_call_impl") is not None or hasattr(module, "_orig_mod")
    except MissingNameError as missing:
        report_fallback("whether a network is compiled is not known", missing)
        return None


def any_compiled(module: nn.Module) -> bool | None:
    """Whether a module or one inside it was compiled; None, and a note on stderr, where torch does not tell."""
    found = [is_compiled(part) for part in module.modules()]
    return None if None in found else any(found)


def load_state_hooks(optimizer: Optimizer) -> tuple[_Hooks, _Hooks]:
    """What was registered to be called before and after a state is loaded into an optimizer.

    Returns:
        Two empty lists, and a note on stderr, where torch keeps it elsewhere.
    """
    try:
        before = _TORCH.get(optimizer, "_optimizer_load_state_dict_pre_hooks")
        after = _TORCH.get(optimizer, "_optimizer_load_state_dict_post_hooks")
    except MissingNameError as missing:
        report_fallback(f"hooks on the loading of a {type(optimizer).__name__}'s state are not called", missing)
        return [], []
    return list(before.values()), list(after.values())


def wrap_loader_start(
    around: Callable[[str], AbstractContextManager[None]], begin: Callable[[Callable[[int], None] | None, int], None]
) -> None:
    """Has every ``DataLoader`` of this process start its processes in a context; once, however often it is called.

    Without the name, loaders stay as torch has them, and stderr says what follows.

    Args:
        around: makes the context, of the start method (``fork``, ``spawn`` or ``forkserver``).
        begin: called in each process in the place of the loader's ``worker_init_fn``, which it is given, with the
            number of the process.
    """
    try:
        start = _TORCH.get(DataLoader, "_get_iterator")
    except MissingNameError as missing:
        report_fallback(
            "a stop signal to all processes of a run ends its loader processes, and with them the run", missing
        )
        return
    if getattr(start, "is_wrapped", False):
        return

    @functools.wraps(start)
    def wrapped(loader: DataLoader[Any]) -> Any:
        if not loader.num_workers:
            return start(loader)
        given, context = loader.worker_init_fn, loader.multiprocessing_context or multiprocessing
        loader.worker_init_fn = functools.partial(begin, given)
        try:
            with around(context.get_start_method()):
                return start(loader)
        finally:
            loader.worker_init_fn = given

    wrapped.is_wrapped = True  # type: ignore[attr-defined]
    _TORCH.set(DataLoader, "_get_iterator", wrapped)


class KeepsDtypes(nn.Module):
    """A module whose own tensors and its children's follow a change of device and no change of dtype.

    Lightning casts a whole module to half precision with ``.to(dtype)``, its metrics' sums too, although torchmetrics
    guards against ``.half()``: in bfloat16 a sum stops growing at 256 times what is added. Not for modules with
    parameters, which are to be cast. To be named before ``torchmetrics.Metric`` among the bases of a metric.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        this: Self = super()._apply(moved, *args, **kwargs)  # type: ignore[no-untyped-call]
        return this
