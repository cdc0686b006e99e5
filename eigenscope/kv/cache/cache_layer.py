"""Compressed KV cache of one layer."""

from collections.abc import Callable

import torch
from torch import Tensor

from eigenscope.kv.cache.hugging_face import CacheLayerMixin
from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys
from eigenscope.kv.codecs.codec import Code, Fitted, FittedKV, KVCodec


class SpectralLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: the first tokens and the last exact, whole blocks between them as codes.

    Slot t of the cache is token t of the padded input. Until the first block is compressed everything is in ``keys``
    and ``values``, rotated as they came. From then on these are the tail, and before it stand ``sinks`` slots and n
    blocks. The sinks held are the first tokens that are no padding, so that they lie within the blocks where a
    sequence is padded; there a block codes other tokens of the sequence, which leave its basis alone, in their place
    and in that of the padding.

    Args:
        index: of the layer, for messages.
        codec: of keys and values.
        pooled: whether the cache gives ``fitted`` to all layers together; otherwise the codec fits on its own blocks.
        frame: positions of the slots, shared by the layers.
        sinks: exact tokens at the start of each sequence.
        window: exact tokens at the end, at least.
        block: tokens that are compressed together.
        fitted: states of the codecs; None fits them on the first blocks.
    """

    is_sliding = False
    is_compileable = False
    # A block that was compressed stays so when what came after it is rolled back.
    is_croppable = False

    keys: Tensor
    values: Tensor
    first: tuple[Tensor, Tensor] | None  # exact sinks (B, H, sinks, d), once a block is compressed
    codes: tuple[Code, Code] | None  # of keys and values (B, blocks, H, block, d)
    blocks: int

    def __init__(
        self,
        index: int,
        codec: KVCodec,
        frame: UnrotatedKeys,
        *,
        sinks: int,
        window: int,
        block: int,
        fitted: FittedKV | None = None,
        pooled: bool = False,
    ) -> None:
        self.index, self.codec, self.frame, self.pooled = index, codec, frame, pooled
        self.sinks, self.window, self.block = sinks, window, block
        self.given = fitted
        self.reset()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes shape, dtype and device of the first tokens."""
        self.keys, self.values = key_states[:, :, :0].clone(), value_states[:, :, :0].clone()
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Adds tokens (B, H, n, d) and returns all (B, H, length, d) for attention: the new ones are exact.

        Only then blocks are compressed: all that are whole and older than the window, in one call. While past is
        recorded that waits for the next call of :meth:`crop` or :meth:`update`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.record_past:
            self.compress()
        self.keys = torch.cat([self.keys, key_states], -2)
        self.values = torch.cat([self.values, value_states], -2)
        everything = self._everything()
        if not self.record_past:
            self.compress()
        return everything

    def get_seq_length(self) -> int:
        """Slots in use, padding included."""
        return self._start() + self.keys.shape[-2] if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask of the next tokens."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1, for unbounded."""
        return -1

    def activate_past_recording(self) -> None:
        """Makes compression wait until :meth:`crop` has said which of the newest tokens stay."""
        self.record_past = True

    def reset(self) -> None:
        """Drops all tokens and, unless it was given, what the codecs have learned."""
        super().__init__()  # type: ignore[no-untyped-call]  # no tokens, as at the start
        self.fitted = self.given
        self.record_past = False
        self._drop_blocks()

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last ``-tokens_to_remove`` tokens.

        Where that reaches into the blocks, the block that is cut is decoded into the tail, which then is as exact as
        the codec was; the blocks before it stay codes.

        Raises:
            ValueError: the number is positive, which meant a length in earlier versions of transformers.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be 0 or the negative of a number, got {tokens_to_remove}")
        if not self.is_initialized:
            return
        length = max(0, self.get_seq_length() + tokens_to_remove)
        if tokens_to_remove and length >= self._start():
            stop = length - self._start()
            self.keys, self.values = self.keys[:, :, :stop].clone(), self.values[:, :, :stop].clone()
        elif tokens_to_remove:
            keys, values = self._everything()
            blocks = (length - self.sinks) // self.block if length >= self.sinks + self.frame.longest_padding else 0
            if blocks > 0:
                self.codes = self._codes_map(lambda t: t[:, :blocks].clone())
                self.blocks = blocks
            else:
                self._drop_blocks()
            kept = slice(self._start(), length)
            self.keys, self.values = keys[:, :, kept].clone(), values[:, :, kept].clone()
        if self.record_past:
            self.compress()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the sequences ``beam_idx`` in their order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the sequences ``indices``, numbers or a mask."""
        if self.is_initialized:
            self._rows(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence ``repeats`` times."""
        if self.is_initialized:
            self._rows(lambda t: t.repeat_interleave(repeats, 0))

    def bits(self, side: int) -> tuple[float, ...]:
        """Bits stored for an element of each head's coded keys (0) or values (1), what was learned included."""
        if self.codes is None or self.fitted is None:
            return ()
        codec, code, state = (self.codec.keys, self.codec.values)[side], self.codes[side], self.fitted[side]
        elements = len(self.keys) * self.blocks * self.block * state.channels
        return tuple((8 * codec.bytes_by_group(code, state) / elements).tolist())

    def _rows(self, function: Callable[[Tensor], Tensor]) -> None:
        self.keys, self.values = function(self.keys), function(self.values)
        if self.first is not None:
            self.first = (function(self.first[0]), function(self.first[1]))
            self.codes = self._codes_map(function)

    def _codes_map(self, function: Callable[[Tensor], Tensor]) -> tuple[Code, Code] | None:
        return None if self.codes is None else (self.codes[0].map(function), self.codes[1].map(function))

    def _drop_blocks(self) -> None:
        self.blocks, self.first, self.codes = 0, None, None

    def _start(self) -> int:
        """The slot at which the tail starts."""
        return self.sinks + self.blocks * self.block if self.blocks else 0

    def _lead(self) -> int:
        """How many of the tokens held before the next block are sinks."""
        return 0 if self.blocks else self.sinks

    def _everything(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, (B, H, length, d); those of padding mean nothing."""
        if self.codes is None or self.first is None or self.fitted is None:
            return self.keys, self.values
        coded = slice(self.sinks, self._start())
        keys, values = (
            tail.new_empty(*tail.shape[:2], self.get_seq_length(), tail.shape[-1]) for tail in (self.keys, self.values)
        )
        decoded = self.codec.keys.decode(self.codes[0], self.fitted.keys).transpose(1, 2).flatten(2, 3)
        self.frame.redo(decoded, self.sinks, out=keys[:, :, coded])
        decoded = self.codec.values.decode(self.codes[1], self.fitted.values)
        values[:, :, coded].view(*values.shape[:2], self.blocks, self.block, -1).copy_(decoded.transpose(1, 2))
        for full, first, tail in zip((keys, values), self.first, (self.keys, self.values), strict=True):
            full[:, :, : self.sinks] = first
            full[:, :, coded.stop :] = tail
            if self.frame.padding is not None:
                full.scatter_(2, self._sink_slots(full), first)
        return keys, values

    def _sink_slots(self, states: Tensor) -> Tensor:
        """Where the sinks of each sequence stand, (B, H, sinks, d)."""
        slots = torch.arange(self.sinks, device=states.device)[None]
        if self.frame.padding is not None:
            slots = slots + self.frame.padding.to(states.device)[:, None]
        return slots[:, None, :, None].expand(*states.shape[:2], -1, states.shape[-1])

    def whole_blocks(self) -> int:
        """How many blocks before the window are whole and not compressed."""
        if not self.is_initialized or self.get_seq_length() < self.sinks + self.frame.longest_padding:
            return 0
        return max(0, (self.keys.shape[-2] - self._lead() - self.window) // self.block)

    @torch.no_grad()
    def ready(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values (B, blocks, H, block, d) of the whole blocks before the window; None if there is none."""
        count = self.whole_blocks()
        if not count:
            return None
        start = self.sinks + self.blocks * self.block
        padded = start < self.sinks + self.frame.longest_padding
        kept = slice(self._lead(), None if padded else self._lead() + count * self.block)
        keys, values = self.frame.undo(self.keys[:, :, kept], start), self.values[:, :, kept]
        if padded:
            index = self._ordinary_tokens(start, count * self.block, keys)
            keys, values = keys.take_along_dim(index, 2), values.take_along_dim(index, 2)
        shape = (*keys.shape[:2], count, self.block, -1)
        return keys.reshape(shape).transpose(1, 2), values.reshape(shape).transpose(1, 2)

    @torch.no_grad()
    def compress(self, blocks: tuple[Tensor, Tensor] | None = None) -> None:
        """Encodes all whole blocks before the window, and frees them; nothing while a pooled fit is missing.

        Args:
            blocks: what :meth:`ready` gave just now, if it was asked.
        """
        if blocks is None and not (self.pooled and self.fitted is None):
            blocks = self.ready()
        if blocks is None:
            return
        learned: list[Fitted] = []
        codes: list[Code] = []
        for name, X in zip(FittedKV._fields, blocks, strict=True):
            codec = getattr(self.codec, name)
            try:
                learned.append(codec.fit(X) if self.fitted is None else getattr(self.fitted, name))
                codes.append(codec.encode(X, learned[-1]))
            except ValueError as error:
                raise ValueError(f"{name} of layer {self.index}: {error}") from error
        if self.first is None:
            at = self._sink_slots(self.keys)
            self.first = (self.keys.gather(2, at), self.values.gather(2, self._sink_slots(self.values)))
        old = self.codes
        self.codes = (codes[0], codes[1]) if old is None else (old[0].joined(codes[0]), old[1].joined(codes[1]))
        self.fitted = self.fitted or FittedKV(*learned)
        end = self._lead() + blocks[0].shape[1] * self.block
        self.blocks += blocks[0].shape[1]
        self.keys, self.values = self.keys[:, :, end:].clone(), self.values[:, :, end:].clone()

    def _ordinary_tokens(self, start: int, count: int, states: Tensor) -> Tensor:
        """Which of the tokens ``states`` (B, H, n, d) from slot ``start`` on to code in ``count`` slots.

        Where a slot is padding or a sink it is one of the other tokens of the sequence, taken in turn.
        """
        slots = torch.arange(count, device=states.device)
        padding = slots.new_zeros(1) if self.frame.padding is None else self.frame.padding
        leading = (padding.to(slots) + self.sinks - start).clamp_min(0)[:, None]
        others = leading + slots % (states.shape[-2] - leading).clamp_min(1)
        index = torch.where(slots < leading, others, slots).clamp_max(states.shape[-2] - 1)
        return index[:, None, :, None]
