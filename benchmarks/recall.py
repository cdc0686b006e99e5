"""Associative recall study: recall of a small causal transformer with compressed keys and values, codec by codec.

    python benchmarks/recall.py                          # the last run of configs/recall.yaml, trained if there is none
    python benchmarks/recall.py --checkpoint <file.ckpt>

Contexts are read exactly; then all of their keys and values but the first 4 and the last 32 tokens are compressed, keys
before rotation; then all queries are asked in one pass. × counts everything held, exact tokens included, against the
keys and values in 16 bits: for one sequence that pays for all that its codec has learned, and for a sequence that
shares this with 63 others (low rank and integers learn nothing and hold the same either way). Codecs are fitted on
contexts that the network was trained on, never on those they compress; only low rank has its own basis for each.
The reference pipeline's ranks were meant for heads of 128 channels: it is measured at these and at their share of ours.

The last table is the same through ``SpectralCache`` in transformers, where the codec learns from what it compresses.
"""

import argparse
import logging
from pathlib import Path

import torch
from compressed_recall import CompressedRecall, as_llama, compressed_recall
from timing import machine
from torch import Tensor
from tqdm import tqdm

from eigenscope import cli
from eigenscope.data import RecallTask, draw_recall
from eigenscope.kv import Codec, Exact, KVCodec, LowRankInt8, ScoreAwareCodec, TransformCodec, UniformInt
from eigenscope.lightning_modules import AssociativeRecallModule
from eigenscope.nn import CausalTransformer
from eigenscope.noise import stream_key
from eigenscope.text import text_table

CONFIG = Path(__file__).parents[1] / "configs" / "recall.yaml"
SINKS, RECENT = 4, 32
SHARING = 64  # sequences, in the second column


def trained(checkpoint: Path | None) -> AssociativeRecallModule:
    """The network of a checkpoint; of the last finished run of the configuration, or of one that is made now."""
    if checkpoint is None:
        found = sorted(Path("runs/recall").glob("*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            print(f"no run of {CONFIG.name} yet: training one", flush=True)
            run = cli.main(["fit", "--config", str(CONFIG), "--trainer.enable_model_summary=false"])
            found = [Path(run.trainer.log_dir) / "checkpoints" / "best.ckpt"]
        checkpoint = found[-1]
    print(f"{checkpoint}")
    return AssociativeRecallModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()


def middle_bits(times: float, task: RecallTask) -> float:
    """Bits for each element of a compressed token at which everything held is ``times`` smaller than in 16 bits."""
    exact = (SINKS + RECENT) / task.context
    return (16 / times - 16 * exact) / (1 - exact)


def budgeted(kind: type[TransformCodec], times: float, task: RecallTask, sequences: int) -> TransformCodec:
    """The codec that holds ``times`` less than 16 bits when so many sequences share what it has learned."""
    tokens = (task.context - SINKS - RECENT) * sequences
    return kind(bits_per_element=middle_bits(times, task), tokens=tokens)


def rows(task: RecallTask, head_width: int) -> dict[str, Codec | KVCodec]:
    """The codecs of the table by name; a × in a name is what the budget was made for."""
    codecs: dict[str, Codec | KVCodec] = {"exact, 16 bit": Exact()}
    codecs |= {f"uniform, {bits} bit": UniformInt(bits) for bits in (8, 4, 2)}
    for keys, values in ((16, 32), (head_width // 8, head_width // 4)):  # as reported, and their share of 128 channels
        if values <= head_width:
            codecs[f"reference, ranks {keys}/{values}"] = KVCodec(LowRankInt8(keys), LowRankInt8(values))
    for kind, name in ((TransformCodec, "transform"), (ScoreAwareCodec, "score-aware")):
        for times in (6.2, 8.0):
            codecs[f"{name}, {times:g}× alone"] = budgeted(kind, times, task, 1)
        for times in (6.2, 8.0, 10.0):
            codecs[f"{name}, {times:g}× of {SHARING}"] = budgeted(kind, times, task, SHARING)
    return codecs


def row(name: str, result: CompressedRecall, exact: CompressedRecall) -> list[str]:
    bits = result.bits_per_element()
    points = 100 * (result.recall - exact.recall)
    return [
        name,
        f"{16 / bits:.2f}×",
        f"{16 / result.bits_per_element(SHARING):.2f}×",
        f"{bits:.2f}",
        f"{result.error_keys:.3f}",
        f"{result.error_values:.3f}",
        f"{100 * result.recall:.2f}",
        f"{points:+.2f}",
    ]


@torch.no_grad()
def through_cache(net: CausalTransformer, tokens: Tensor, labels: Tensor, codec: Codec, task: RecallTask) -> list[str]:
    """× and recall of the same network in bfloat16 as transformers' Llama."""
    from eigenscope.kv import SpectralCache

    model = as_llama(net).to(torch.bfloat16)
    block = task.context - SINKS - RECENT
    cache = SpectralCache(model.config, codec, sinks=SINKS, window=RECENT, block=block)
    model(tokens[:, : task.context], past_key_values=cache)
    times = cache.report().compression_ratio
    logits = model(tokens[:, task.context :], past_key_values=cache).logits
    recall = (logits.argmax(-1) == labels[:, task.context :]).double().mean()
    return [f"{times:.2f}×", f"{100 * recall:.2f}"]


def sequences(task: RecallTask, key: int, count: int) -> tuple[Tensor, Tensor]:
    return draw_recall(task, key, torch.arange(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sequences", type=int, default=128)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    config = cli.resolve(["--config", str(CONFIG)])
    task = RecallTask(**config["data"]["init_args"]["task"])
    module = trained(options.checkpoint)
    net = module.net
    assert isinstance(net, CausalTransformer)  # for the type checker; the configuration has no other
    last = config["trainer"]["max_epochs"] - 1
    calibration, _ = sequences(task, stream_key(config["seed_everything"], last), 64)
    tokens, labels = sequences(task, stream_key(stream_key(2)), options.sequences)
    results: dict[str, CompressedRecall] = {}
    for name, codec in tqdm(rows(task, net.blocks[0].attention.head_width).items(), unit="codec"):
        results[name] = compressed_recall(
            net, tokens, labels, codec, calibration=calibration, sinks=SINKS, recent=RECENT
        )
    exact = results["exact, 16 bit"]
    asked = exact.right.numel()
    print(f"\n{machine()}; context of {task.context} tokens, {SINKS} + {RECENT} exact; {asked} questions in ", end="")
    print(f"{options.sequences} sequences; chance is {100 / task.values:.1f} %\n")
    header = ["codec", "alone", f"of {SHARING}", "bits", "error K", "error V", "recall %", "points"]
    print(text_table(header, [row(name, result, exact) for name, result in results.items()]))
    cached = {"exact": Exact()} | {f"transform, {x:g}×": budgeted(TransformCodec, x, task, SHARING) for x in (6.2, 8.0)}
    some = [through_cache(net, tokens[:SHARING], labels[:SHARING], codec, task) for codec in cached.values()]
    print(f"\nThrough SpectralCache in transformers, {SHARING} sequences in bfloat16\n")
    print(text_table(["codec", "×", "recall %"], [[name, *cells] for name, cells in zip(cached, some, strict=True)]))


if __name__ == "__main__":
    main()
