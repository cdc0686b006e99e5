"""A codec for keys and another for values."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from eigenscope.kv.codec import Codec, Fitted


@dataclass(frozen=True)
class KVCodec:
    """What compresses keys, and what compresses values.

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
    """What the codecs of keys and of values of one layer have learned."""

    keys: Fitted
    values: Fitted
