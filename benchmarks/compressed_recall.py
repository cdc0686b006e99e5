"""Associative recall of a causal transformer from a context whose keys and values were compressed."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eigenscope.kv import Codec, KVCodec, nbytes, relative_error
from eigenscope.kv.measuring.attention_layers import attention_layers
from eigenscope.kv.measuring.capture import capture
from eigenscope.kv.measuring.fit_inputs import met_queries, received_attention
from eigenscope.nn import CausalTransformer, llama_weights, observe


@dataclass(frozen=True)
class CompressedRecall:
    """How much is recalled, and how much was held for it.

    Attributes:
        answers: (N, queries) int64, the likeliest token after each question.
        right: (N, queries) bool, whether it is the one.
        tokens: of a context, sinks and recent ones included.
        elements: numbers of keys and values that one token has, over all blocks and heads.
        code_bytes: of all N sequences, exact tokens included.
        state_bytes: of what the codecs have learned, held once whatever the number of sequences.
        error_keys: ‖K − K̂‖ / ‖K‖ over the tokens that were compressed.
        error_values: the same of the values.
    """

    answers: Tensor
    right: Tensor
    tokens: int
    elements: int
    code_bytes: int
    state_bytes: int
    error_keys: float
    error_values: float

    @property
    def recall(self) -> float:
        """Fraction of right answers."""
        return float(self.right.double().mean())

    def bits_per_element(self, sequences: int = 1) -> float:
        """Bits stored for each number of keys and values by so many sequences that share the codecs' state."""
        held = self.code_bytes / len(self.right) + self.state_bytes / sequences
        return 8 * held / (self.tokens * self.elements)


class Stored(NamedTuple):
    """Keys and values of a pass, before rotation: (B, blocks, heads, T, head width) each."""

    keys: Tensor
    values: Tensor


@torch.no_grad()
def stored_by(net: CausalTransformer, tokens: Tensor, dtype: torch.dtype | None = None) -> Stored:
    """What the network's hook points show of a pass over tokens (B, T), in ``dtype`` or the network's own."""
    with observe(net, "blocks.*.attention.*") as seen:
        net(tokens)
    stacked = (
        torch.stack([x for name, x in seen.items() if name.endswith(f".{kind}")], dim=1) for kind in Stored._fields
    )
    return Stored(*(x if dtype is None else x.to(dtype) for x in stacked))


@torch.no_grad()
def compressed_recall(
    net: CausalTransformer,
    tokens: Tensor,
    labels: Tensor,
    codec: Codec | KVCodec,
    *,
    calibration: Tensor,
    sinks: int = 4,
    recent: int = 32,
    dtype: torch.dtype | None = torch.float16,
) -> CompressedRecall:
    """Reads contexts exactly, compresses their keys and values, and asks.

    No token of the context sees anything compressed; the queries see the first ``sinks`` and the last ``recent`` tokens
    exactly, and every other token as decoded. Keys are compressed before rotation.

    A codec is fitted once, on the middle tokens of other contexts. One that looks at queries is given those of the
    questions there as they meet the keys; one that looks at weights, the attention that each token receives from the
    questions.

    Args:
        net: trained on the task.
        tokens: (N, T) int64, contexts with questions after them, as :func:`eigenscope.data.draw_recall` makes them.
        labels: (N, T) int64, negative in the context.
        codec: of keys and values, or a pair.
        calibration: (N', T) int64, other sequences with as long a context.
        sinks: first tokens kept exactly.
        recent: last tokens of the context kept exactly.
        dtype: in which keys and values are held where they are exact, and handed to the codec; None is the network's.

    Raises:
        ValueError: the lengths of the contexts differ, or nothing of them is left to compress.
    """
    context = int((labels < 0).all(0).sum())
    if not 0 <= sinks < context - recent or recent < 0:
        raise ValueError(f"sinks and recent must leave some of {context} tokens, got {sinks} and {recent}")
    if calibration.shape[1:] != tokens.shape[1:]:
        raise ValueError(f"calibration must have sequences of {tokens.shape[1]} tokens, got {calibration.shape[1]}")
    pair = KVCodec.of(codec)
    middle = slice(sinks, context - recent)
    known, asked = stored_by(net, calibration, dtype), slice(context, None)
    blocks = capture(attention_layers(net), lambda: net(calibration))[1].values()
    met = torch.stack([met_queries(seen, queries=asked, keys=middle) for seen in blocks], 1)
    received = torch.stack([received_attention(seen, queries=asked) for seen in blocks], 1)
    fitted = (
        pair.keys.fit(known.keys[..., middle, :], groups=2, queries=met),
        pair.values.fit(known.values[..., middle, :], groups=2, weights=received[..., middle]),
    )
    held = stored_by(net, tokens[:, :context], dtype)
    exact: list[Tensor] = []
    codes, decoded, errors = [], [], []
    for part, X, state in zip((pair.keys, pair.values), held, fitted, strict=True):
        first, last = X[..., :sinks, :].clone(), X[..., context - recent :, :].clone()
        code = part.encode(X[..., middle, :], state)
        X_hat = part.decode(code, state)
        errors.append(float(relative_error(X[..., middle, :], X_hat, dim=None)))
        decoded.append(torch.cat([first, X_hat, last], dim=-2))
        exact += [first, last]
        codes.append(code)
    past = list(zip(*(x.unbind(1) for x in decoded), strict=True))
    answers = net(tokens[:, context:], past).argmax(-1)
    elements = sum(x[0, ..., 0, :].numel() for x in held)
    held_bytes = nbytes(codes, exact)
    right = answers == labels[:, context:]
    return CompressedRecall(answers, right, context, elements, held_bytes, nbytes(fitted), *errors)


def as_llama(net: CausalTransformer) -> Any:
    """The same network as a model of transformers, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    attention = net.blocks[0].attention
    config = LlamaConfig(
        vocab_size=net.vocabulary,
        hidden_size=net.norm.weight.numel(),
        intermediate_size=net.blocks[0].mlp.gate.out_features,
        num_hidden_layers=len(net.blocks),
        num_attention_heads=attention.to_queries.out_features // attention.head_width,
        num_key_value_heads=attention.to_keys.out_features // attention.head_width,
        attention_bias=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": net.rope_base},
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(llama_weights(net))
    return model
