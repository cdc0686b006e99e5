"""Memory report of a KV cache: stored bytes, compression ratio, fraction saved."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class CacheReport:
    """Memory of a cache: stored bytes, each storage counted once and whole, as would be freed with the cache.

    Attributes:
        tokens: slots of each sequence, padding included.
        sequences: of the batch.
        dtype: of the keys and values that came in, and of the baseline.
        baseline: bytes of the same keys and values, of all layers, uncompressed in that dtype.
        sinks: bytes of the exact first tokens.
        codes: bytes of the compressed blocks.
        basis: bytes of what the codecs have learned.
        tail: bytes of the exact last tokens: the window, and what is not yet a whole block.
        positions: bytes of the frequencies of the rotation and of the padding.
    """

    tokens: int
    sequences: int
    dtype: torch.dtype | None
    baseline: int
    sinks: int
    codes: int
    basis: int
    tail: int
    positions: int

    @property
    def stored(self) -> int:
        """Bytes of all tiers."""
        return sum(self.tiers().values())

    @property
    def compression_ratio(self) -> float:
        """Bytes of the baseline over bytes stored; 1 for an empty cache."""
        return self.baseline / self.stored if self.baseline else 1.0

    @property
    def fraction_saved(self) -> float:
        """Fraction of the bytes of the baseline that is not stored; negative if more are stored."""
        return 1 - self.stored / self.baseline if self.baseline else 0.0

    def tiers(self) -> dict[str, int]:
        """Bytes by tier, from the first tokens to the last."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[names.index("sinks") :]}

    def __str__(self) -> str:
        rows = [*self.tiers().items(), ("stored", self.stored), (f"in {self._dtype()}", self.baseline)]
        width = max(len(name) for name, _ in rows)
        digits = max(len(f"{count:,}") for _, count in rows)
        lines = [f"{name:<{width}}  {count:>{digits},} bytes" for name, count in rows]
        head = f"{self.sequences} × {self.tokens} tokens"
        tail = f"{self.compression_ratio:.2f}× compression ratio, {100 * self.fraction_saved:.1f} % saved"
        return "\n".join([head, *lines, tail])

    def _dtype(self) -> str:
        return str(self.dtype).removeprefix("torch.") if self.dtype else "nothing"
