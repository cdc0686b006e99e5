"""TensorFloat-32: rounding to it, and matrix products in it on devices that lack it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eigenscope.adapters.torch_names import TorchDispatchMode, aten_products
from eigenscope.precision import has_tf32

_DROPPED_BITS = 13  # float32 stores 23 bits of the mantissa, TF32 10

_aten = torch.ops.aten
# The position of the first operand of the product; the second follows it, an additive term precedes it.
_PRODUCTS = {
    _aten.mm: 0,
    _aten.bmm: 0,
    _aten.addmm: 1,
    _aten.addmm_: 1,
    _aten.addbmm: 1,
    _aten.addbmm_: 1,
    _aten.baddbmm: 1,
    _aten.baddbmm_: 1,
    **aten_products(),
}


def round_to_tf32(x: Tensor) -> Tensor:
    """Rounds to the nearest TF32 number: the exponent of float32, but 10 bits of mantissa instead of 23.

    Ties go to the number whose last bit is zero. Signed zeros and infinities stay; NaN stays NaN with its payload;
    subnormal numbers become multiples of 2^-136. A magnitude of 2^128 − 2^116 or more, half a step above the largest
    TF32 number, becomes infinite.

    The format is that of NVIDIA's "A100 Tensor Core GPU Architecture" whitepaper (2020), which does not say how
    operands are rounded to it; a tensor core may break ties otherwise or cut the bits off.

    Args:
        x: float32, any shape, any strides.

    Returns:
        float32, same shape, a new tensor without gradient.

    Raises:
        ValueError: x is not float32.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x must be torch.float32, got {x.dtype}")
    x = x.detach().resolve_neg()
    bits = x.view(torch.int32)
    half = (1 << (_DROPPED_BITS - 1)) - 1 + ((bits >> _DROPPED_BITS) & 1)  # one less where the last bit kept is zero
    rounded = ((bits + half) & -(1 << _DROPPED_BITS)).view(torch.float32)  # a carry moves into the exponent, as it must
    return torch.where(x.isfinite(), rounded, x)


@contextmanager
def emulate_tf32() -> Iterator[None]:
    """A context in which devices without TF32 multiply float32 matrices as those with it.

    ``torch.set_float32_matmul_precision("high")`` changes nothing on a CPU or an old GPU. In this context it does
    there what it does on a GPU of compute capability 8.0 or later: both operands of every product are rounded by
    :func:`round_to_tf32` and the products of the rounded numbers added up in float32. The precision is read at each
    product, so that an optimizer which sets it around some of its products has those in TF32 and no others; at
    ``"highest"`` nothing changes, and ``"medium"`` counts as ``"high"``, as it does on NVIDIA's GPUs. Contexts may be
    nested.

    Covered is what PyTorch hands to a matrix product of its own: ``mm``, ``bmm``, ``addmm``, ``addbmm`` and ``baddbmm``
    with their in-place and ``out=`` forms, hence ``@``, ``matmul``, ``einsum``, ``tensordot``, ``nn.Linear`` and their
    backward passes, also under ``no_grad`` and ``inference_mode``. The term that ``addmm`` adds is not rounded.
    Other dtypes, sparse matrices and devices with TF32 are left alone. Not covered: products with a vector (``mv``,
    ``dot``), complex matrices, fused attention, convolutions, recurrent layers and functions that multiply inside one
    kernel, such as ``matrix_exp``; and what other threads compute. Functions under ``torch.compile`` run uncompiled.
    """
    # No mode sees the products inside compiled code. torch runs such functions uncompiled under a mode by itself, but
    # not those that insist on a full graph: they raise.
    with torch.compiler.set_stance("force_eager"), _EmulatedTF32():
        yield


class _EmulatedTF32(TorchDispatchMode):  # type: ignore[misc]  # torch's class, whatever the release calls it
    """Rounds the operands of float32 products before they are multiplied."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.get_float32_matmul_precision() == "highest":
            return func(*args, **kwargs)
        first = _PRODUCTS.get(func.overloadpacket)
        if first is not None:
            operands = (_rounded(x) for x in args[first : first + 2])
            return func(*args[:first], *operands, *args[first + 2 :], **kwargs)
        with self:  # inference mode hands over matmul and its like whole
            parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts


def _rounded(operand: Tensor) -> Tensor:
    plain = operand.dtype == torch.float32 and operand.layout == torch.strided
    return round_to_tf32(operand) if plain and not has_tf32(operand.device) else operand
