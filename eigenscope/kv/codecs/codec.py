"""Codec interface for keys and values: fit, encode, decode, and the stored bytes."""

import contextlib
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


def no_grad_no_autocast[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function of tensors or codes in the dtypes that it asks for, outside autocast, and without gradients."""

    @functools.wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = {device.type for device in _devices((*args, *kwargs.values()))}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return plain


def _devices(values: Iterable[object]) -> Iterator[torch.device]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.device
        elif isinstance(value, _Stored):
            yield from _devices(vars(value).values())
        elif isinstance(value, list | tuple):
            yield from _devices(value)


@dataclass(frozen=True, eq=False)
class _Stored:
    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor replaced by ``function`` of it, as for another device, or for rows of a batch."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.map(lambda x: x.to(device))


@dataclass(frozen=True, eq=False)
class Fitted(_Stored):
    """State that a codec learned from calibration data; a codec that learns nothing only keeps their shape.

    Attributes:
        groups: sizes of the dimensions before (T, d) that have a state of their own, such as (heads,).
        channels: d.
    """

    groups: tuple[int, ...]
    channels: int


@dataclass(frozen=True, eq=False)
class Code(_Stored):
    """A compressed block. Every tensor has the batch dimensions first, is contiguous and owns its storage.

    Attributes:
        tokens: T of the block.
        dtype: of the block, and of what is decoded.
    """

    tokens: int
    dtype: torch.dtype

    def joined(self, other: Self) -> Self:
        """These blocks, and after them those of another code of the same sequences, along the second dimension."""
        ours, theirs = vars(self), vars(other)
        tensors: dict[str, Any] = {
            name: torch.cat([ours[name], x], 1) for name, x in theirs.items() if isinstance(x, Tensor)
        }
        return dataclasses.replace(self, **tensors)


class Factors(NamedTuple):
    """A decoded block X̂ = C B + mean, not multiplied out, at least float32.

    Attributes:
        C: (*batch, *groups, T, k), one row a token.
        B: (..., *groups, k, d), the directions, which broadcast against C; None is the identity, with k = d.
        mean: (*groups, d), or None for zero.
    """

    C: Tensor
    B: Tensor | None = None
    mean: Tensor | None = None

    @no_grad_no_autocast
    def multiplied(self) -> Tensor:
        """X̂ (*batch, *groups, T, d)."""
        X = self.C if self.B is None else self.C @ self.B
        return X if self.mean is None else X + self.mean[..., None, :]


class Codec(ABC):
    """Compresses keys or values X (*batch, *groups, T, d): T tokens of d channels.

    A codec holds options only. What is learned from data is in the :class:`Fitted` that :meth:`fit` returns: it
    belongs to the groups (heads, or layers × heads) and is shared by the batch and by every block encoded with it.
    Nothing is differentiable. Half precision is computed in float32 and decoded to its own dtype, whether or not
    autocast is on.
    """

    def fit(
        self, X: Tensor, *, groups: int = 1, queries: Tensor | None = None, weights: Tensor | None = None
    ) -> Fitted:
        """Learns from calibration data, which may be the first block; codecs that learn nothing only look at shapes.

        Args:
            X: (*batch, *groups, T, d) floating.
            groups: how many dimensions before (T, d) have a state of their own; those before them are the batch.
            queries: what the keys will be multiplied with; only :class:`ScoreAwareCodec` looks at them.
            weights: how much each token counts; only :class:`ScoreAwareCodec` looks at them.

        Raises:
            ValueError: X is not floating point, has too few dimensions, is empty, or holds NaN or inf.
        """
        check_tokens(X, groups)
        return Fitted(tuple(X.shape[X.ndim - 2 - groups : -2]), X.shape[-1])

    @abstractmethod
    def encode(self, X: Tensor, fitted: Fitted) -> Code:
        """The code of X (*batch, *groups, T, d), of the groups and channels that ``fitted`` is for, any batch and T.

        Raises:
            ValueError: X is of other groups or channels than ``fitted``, is empty, or holds NaN or inf.
        """

    @abstractmethod
    def factors(self, code: Code, fitted: Fitted) -> Factors:
        """The decoded block as a product of two matrices."""

    @no_grad_no_autocast
    def decode(self, code: Code, fitted: Fitted) -> Tensor:
        """X̂ (*batch, *groups, T, d), in the dtype of what was encoded."""
        largest = torch.finfo(code.dtype).max  # an entry near float16's 65504 may be decoded to more
        return self.factors(code, fitted).multiplied().clamp(-largest, largest).to(code.dtype)

    def bytes_by_group(self, code: Code, fitted: Fitted) -> Tensor:
        """Bytes stored for each group, (*groups) float64, code and state, summing to :func:`nbytes` of the two."""
        count = max(1, torch.Size(fitted.groups).numel())
        return torch.full(fitted.groups, nbytes(code, fitted) / count, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class ExactCode(Code):
    """The block itself: ``X`` (*batch, *groups, T, d)."""

    X: Tensor


@dataclass(frozen=True)
class Exact(Codec):
    """Stores X uncompressed: the exact baseline."""

    def encode(self, X: Tensor, fitted: Fitted) -> ExactCode:  # noqa: D102
        check_fits(X, fitted)
        return ExactCode(X.shape[-2], X.dtype, X.detach().clone(memory_format=torch.contiguous_format))

    def factors(self, code: Code, fitted: Fitted) -> Factors:  # noqa: D102
        if not isinstance(code, ExactCode):
            raise ValueError(f"code must be an ExactCode, got {type(code).__name__}")
        return Factors(code.X.to(computed_in(code.dtype)))

    def decode(self, code: Code, fitted: Fitted) -> Tensor:  # noqa: D102
        if not isinstance(code, ExactCode):
            raise ValueError(f"code must be an ExactCode, got {type(code).__name__}")
        return code.X.clone()


def check_whole(**options: object) -> None:
    """Raises ValueError unless each option is an int or None."""
    for name, value in options.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype that codecs compute tensors of ``dtype`` in: their own, at least float32."""
    return torch.promote_types(dtype, torch.float32)


def check_tokens(X: Tensor, groups: int) -> None:
    """Raises ValueError unless X is a finite floating tensor (*batch, *groups, T, d) with no empty dimension."""
    if groups < 0:
        raise ValueError(f"groups must be at least 0, got {groups}")
    if not X.is_floating_point() or X.ndim < groups + 2 or X.numel() == 0:
        wanted = f"floating, (*batch, *groups, T, d) with {groups} dimensions of groups and none empty"
        raise ValueError(f"X must be {wanted}, got {X.dtype} of shape {tuple(X.shape)}")
    if not X.isfinite().all():
        raise ValueError(f"X must be finite, got {'NaN' if X.isnan().any() else 'inf'} in shape {tuple(X.shape)}")


def check_fits(X: Tensor, fitted: Fitted) -> None:
    """Raises ValueError unless X is of the groups and channels that a codec was fitted for, and finite."""
    wanted = (*fitted.groups, fitted.channels)
    if (*X.shape[:-2][X.ndim - 2 - len(fitted.groups) :], *X.shape[-1:]) != wanted:
        raise ValueError(
            f"X must be (*batch, *groups, T, d) with groups {fitted.groups} and d = {fitted.channels}, which the codec "
            f"was fitted for, got shape {tuple(X.shape)}"
        )
    check_tokens(X, len(fitted.groups))


_NO_TENSORS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def stored_tensors(*trees: object) -> dict[str, Tensor]:
    """Every tensor in codes, states and containers of them, under the path that leads to it, such as ``0.planes``.

    Looks into dataclasses, mappings, lists, tuples and sets. Numbers, strings, dtypes, devices and None hold none.

    Raises:
        TypeError: it meets anything else, such as a whole cache, since tensors in it would be missed.
    """
    return dict(_walk(trees, ""))


def nbytes(*trees: object) -> int:
    """Bytes of memory that the tensors in codes, states and containers of them keep alive.

    The number of elements times the element size of each storage, once however often it is met. A view counts the
    whole storage that it keeps alive, since no less can be freed.

    Raises:
        TypeError: as :func:`stored_tensors`.
    """
    storages = {}
    for tensor in stored_tensors(*trees).values():
        storage = tensor.untyped_storage()
        storages[tensor.device, storage.data_ptr() or id(storage)] = storage.nbytes()
    return sum(storages.values())


def bits_per_element(elements: int, *trees: object) -> float:
    """Bits stored for each of ``elements`` numbers represented; count a state once, however many codes it serves.

    Raises:
        ValueError: ``elements`` < 1.
    """
    if elements < 1:
        raise ValueError(f"elements must be at least 1, got {elements}")
    return 8 * nbytes(*trees) / elements


def _walk(tree: object, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
        return
    children: dict[str, object] = {}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        children = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    elif isinstance(tree, Mapping):
        children = {str(name): child for name, child in tree.items()}
    elif isinstance(tree, list | tuple | set | frozenset):
        children = {str(index): child for index, child in enumerate(tree)}
    elif not isinstance(tree, _NO_TENSORS):
        raise TypeError(
            f"trees must be tensors, dataclasses, mappings, lists, tuples or sets of them, got {type(tree).__name__}"
            f"{f' at {path}' if path else ''}"
        )
    for name, child in children.items():
        yield from _walk(child, f"{path}.{name}" if path else name)


@dataclass(frozen=True)
class KVCodec:
    """A codec of keys and one of values.

    Errors of keys move the weights of attention and cost more than errors of values: give keys more bits.

    Args:
        keys: of the keys, before rotation where the model rotates them.
        values: of the values.

    Raises:
        ValueError: one of them is not a :class:`Codec`.
    """

    keys: Codec
    values: Codec

    def __post_init__(self) -> None:
        for name in ("keys", "values"):
            if not isinstance(getattr(self, name), Codec):
                raise ValueError(f"{name} must be a Codec, got {type(getattr(self, name)).__name__}")

    @classmethod
    def of(cls, codec: "Codec | KVCodec") -> Self:
        """The pair itself, or one codec for both."""
        return cls(codec.keys, codec.values) if isinstance(codec, KVCodec) else cls(codec, codec)


class FittedKV(NamedTuple):
    """Fitted states of the codecs of keys and of values of one layer."""

    keys: Fitted
    values: Fitted
