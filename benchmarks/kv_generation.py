"""Benchmark of generation with a compressed cache: tokens per second and bytes stored, on a small random Llama.

    python benchmarks/kv_generation.py                  # CPU, and CUDA where there is one
    python benchmarks/kv_generation.py --tokens 16384   # a longer prompt

Prompt seconds are those of one pass over the prompt, compression included; tokens a second those of the greedy steps
that follow, each of which decodes all blocks. Rounds alternate between the rows. Bytes are those of the cache after
the last step, of the exact one at 16 bits an element. The weights are random, so the codecs' errors say nothing here
and are left out.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import machine, seconds
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache

from eigenscope.kv import Exact, KVCodec, LowRankInt8, SpectralCache, TransformCodec, UniformInt
from eigenscope.text import text_table

BASELINE = "DynamicCache"


def random_llama(layers: int, device: str) -> LlamaForCausalLM:
    """8 query heads that share 2 key heads of 64 channels."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=131072,
    )
    return LlamaForCausalLM(config).eval().to(device)


def caches(config: LlamaConfig) -> dict[str, Callable[[], Cache]]:
    """Fresh caches by the name of their row."""
    return {
        BASELINE: lambda: DynamicCache(config=config),
        "SpectralCache, one budget of 2.6 bits": lambda: SpectralCache(config),
        "SpectralCache, transform 3/2": lambda: SpectralCache(
            config, KVCodec(*(TransformCodec(bits_per_element=bits, tokens=4096) for bits in (3.0, 2.0)))
        ),
        "SpectralCache, reference 16/32": lambda: SpectralCache(config, KVCodec(LowRankInt8(16), LowRankInt8(32))),
        "SpectralCache, uniform 4 bits": lambda: SpectralCache(
            config, KVCodec(UniformInt(4, axis="channel"), UniformInt(4, axis="token"))
        ),
        "SpectralCache, exact": lambda: SpectralCache(config, Exact()),
    }


@torch.no_grad()
def steps(model: LlamaForCausalLM, cache: Cache, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy steps; returns the last token."""
    for _ in range(count):
        ids = model(ids, past_key_values=cache).logits[:, -1:].argmax(-1)
    return ids


def held(cache: Cache) -> int:
    """Bytes, of the exact cache at 16 bits an element."""
    if isinstance(cache, SpectralCache):
        return cache.report().stored
    return sum(2 * t.numel() for layer in cache.layers for t in (layer.keys, layer.values))


def table(tokens: int, new: int, rounds: int, layers: int, device: str) -> str:
    """Every row a cache."""
    model = random_llama(layers, device)
    prompt = torch.randint(0, 1024, (1, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    rows = caches(model.config)
    prompts: dict[str, list[float]] = {name: [] for name in rows}
    generated: dict[str, list[float]] = {name: [] for name in rows}
    size = {}
    for number in range(rounds + 1):
        for name, fresh in rows.items():
            cache, first = fresh(), torch.empty(0)

            def prefill(cache: Cache = cache) -> None:
                nonlocal first
                first = steps_of_prompt(model, cache, prompt)

            duration = seconds(prefill, device)
            each = seconds(lambda cache=cache, first=first: steps(model, cache, first, new), device) / new
            if number:  # the first round warms up
                prompts[name].append(duration)
                generated[name].append(each)
            size[name] = held(cache)
    time = {name: statistics.median(values) for name, values in generated.items()}
    body = [
        [
            name,
            f"{statistics.median(prompts[name]):.2f}",
            f"{1 / time[name]:.1f}",
            f"{time[BASELINE] / time[name]:.2f}×",
            f"{size[name] / 2**20:.2f}",
            f"{size[BASELINE] / size[name]:.2f}×",
            f"{100 * (1 - size[name] / size[BASELINE]):.1f} %",
        ]
        for name in rows
    ]
    return text_table(["cache", "prompt s", "tokens/s", "of baseline", "MiB held", "smaller", "removed"], body)


@torch.no_grad()
def steps_of_prompt(model: LlamaForCausalLM, cache: Cache, prompt: torch.Tensor) -> torch.Tensor:
    """The prompt in one pass; returns the token after it."""
    return model(prompt, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of the prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens generated")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        print(f"\n{options.tokens} tokens of prompt, {options.layers} layers, fp32, {name}, median of {options.rounds}")
        print(table(options.tokens, options.new, options.rounds, options.layers, device))


if __name__ == "__main__":
    main()
