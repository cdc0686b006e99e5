"""Memory report of a KV cache: stored bytes, bits an element by layer, head and side, compression ratio."""

from dataclasses import dataclass

from eigenscope.text import text_table

BASELINE_BITS = 16  # of an element of every baseline, whatever a model computes in


@dataclass(frozen=True)
class CacheReport:
    """Memory of a cache: stored bytes, each storage counted once and whole, as would be freed with the cache.

    Attributes:
        tokens: slots of each sequence, padding included.
        sequences: of the batch.
        coded: slots of each sequence in compressed blocks.
        baseline: bytes of the same keys and values, of all layers, at 16 bits an element.
        sinks: bytes of the exact first tokens.
        codes: bytes of the compressed blocks.
        basis: bytes of what the codecs have learned.
        tail: bytes of the exact last tokens: the window, and what is not yet a whole block.
        positions: bytes of the frequencies of the rotation and of the padding.
        bits_keys: of each layer the bits stored for an element of each head's coded keys, basis included.
        bits_values: the same of the values.
        sensitivities: where those come from by which one budget was spent; None for codecs with budgets of their own.
    """

    tokens: int
    sequences: int
    coded: int
    baseline: int
    sinks: int
    codes: int
    basis: int
    tail: int
    positions: int
    bits_keys: tuple[tuple[float, ...], ...] = ()
    bits_values: tuple[tuple[float, ...], ...] = ()
    sensitivities: str | None = None

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

    @property
    def coded_bits(self) -> float | None:
        """Bits an element of what is compressed, everything counted that is stored for it; None if nothing is."""
        elements = self.baseline * 8 / BASELINE_BITS * self.coded / self.tokens if self.coded else 0
        return 8 * (self.codes + self.basis) / elements if elements else None

    def tiers(self) -> dict[str, int]:
        """Bytes by tier, from the first tokens to the last."""
        return {name: getattr(self, name) for name in ("sinks", "codes", "basis", "tail", "positions")}

    def __str__(self) -> str:
        rows = [*self.tiers().items(), ("stored", self.stored), (f"at {BASELINE_BITS} bits", self.baseline)]
        width = max(len(name) for name, _ in rows)
        digits = max(len(f"{count:,}") for _, count in rows)
        lines = [f"{self.sequences} × {self.tokens} tokens, {self.coded} of them in compressed blocks"]
        lines += [f"{name:<{width}}  {count:>{digits},} bytes" for name, count in rows]
        lines.append(f"{self.compression_ratio:.2f}× compression ratio, {100 * self.fraction_saved:.1f} % saved")
        bits = self.coded_bits
        if bits is not None:
            lines.append(f"{bits:.2f} bits for an element of the compressed blocks, everything counted")
            if self.sensitivities is not None:
                lines.append(f"one budget, spent by sensitivities from {self.sensitivities}")
            lines.append(self.bits_table())
        return "\n".join(lines)

    def bits_table(self) -> str:
        """Bits of an element by layer and side: of all heads, and of each."""
        rows = []
        for layer, sides in enumerate(zip(self.bits_keys, self.bits_values, strict=True)):
            cells = [f"{sum(heads) / len(heads):.2f} ({' '.join(f'{bits:.1f}' for bits in heads)})" for heads in sides]
            rows.append([str(layer), *cells])
        return text_table(["layer", "bits of keys (by head)", "bits of values (by head)"], rows)
