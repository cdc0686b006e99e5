"""Benchmark of KV-cache compression on a real language model: KL, agreement, perplexity and recall at counted bits.

    make llm                                                        # once: 93 MB of weights
    python benchmarks/kv_language.py                                # all codecs on the texts for reporting
    python benchmarks/kv_language.py --texts choosing --codecs transform --no-facts

SmolLM2-135M-Instruct in float32 reads 2,116 tokens of a text exactly; its keys and values, rounded to float16, are the
exact cache. Then 2,048 of them are compressed, all but 4 sinks and a window of 64, and the next 192 real tokens are
read in one call. Bits are of everything stored for the coded tokens of one sequence, over their elements, against 16.
KL is to the exact cache, in nats a prediction; ± is its standard error with texts as the blocks: the deviation of the
texts' means over the root of their number, since the predictions of one text are not independent. Recall is of planted
access codes, twelve to a context: an answer counts if all its digits are right. Choose codecs with --texts choosing.
"""

import argparse
import functools
import re
import statistics
from collections import defaultdict

import torch
from kv_language_model import Protocol, TextFigures, compared, load, logits_after, prefill, recalled
from kv_language_rows import Row, prompt_sensitivities, rows, unavailable
from kv_language_texts import FACT_TOPICS, TEXTS, Purpose, planted, tokens
from timing import machine
from tqdm import tqdm

from eigenscope.kv import Sensitivities
from eigenscope.text import text_table

FACT_SEED = 0


class Measured:
    """What was measured of one row, context after context."""

    def __init__(self) -> None:
        self.bits: list[float] = []
        self.figures: list[TextFigures] = []
        self.answers: list[bool] = []

    def cells(self) -> list[str]:
        """Bits, ×, KL, its standard error, top-1 %, perplexity, recall %."""
        kl, top1, nll = (statistics.fmean(values) for values in zip(*self.figures, strict=True))
        error = statistics.stdev(figures.kl for figures in self.figures) / len(self.figures) ** 0.5
        bits = statistics.fmean(self.bits)
        recall = f"{100 * statistics.fmean(self.answers):.0f}" if self.answers else ""
        perplexity = float(torch.tensor(nll).exp())
        return [
            f"{bits:.3f}",
            f"{16 / bits:.2f}",
            f"{kl:.4f}",
            f"{error:.4f}",
            f"{100 * top1:.1f}",
            f"{perplexity:.2f}",
            recall,
        ]


def measure(
    chosen: dict[str, Row], purpose: Purpose, *, facts: bool, layers: int | None, protocol: Protocol
) -> dict[str, Measured]:
    """Every row on every context; each context is read once."""
    model, tokenizer = load(layers)
    results: dict[str, Measured] = defaultdict(Measured)
    contexts = len(TEXTS[purpose]) + (len(FACT_TOPICS[purpose]) if facts else 0)
    progress = tqdm(total=contexts * len(chosen), unit="row")
    for name, read in TEXTS[purpose].items():
        ids = tokens(tokenizer, name, read(), protocol.prefix + protocol.predictions + 1)
        progress.set_postfix_str(name)
        prefix = prefill(model, ids[:, : protocol.prefix], protocol)
        following, targets = ids[0, protocol.prefix : -1], ids[0, protocol.prefix + 1 :]
        exact = logits_after(prefix, prefix.states, following)
        for row, compress in chosen.items():
            states, bits = compress(prefix)
            results[row].bits.append(bits)
            results[row].figures.append(compared(exact, logits_after(prefix, states, following), targets))
            progress.update()
    for name in FACT_TOPICS[purpose] if facts else ():
        context = planted(tokenizer, name, protocol.prefix, protocol.sinks + protocol.coded, FACT_SEED)
        progress.set_postfix_str(f"facts in {name}")
        prefix = prefill(model, context.prefix, protocol)
        for row, compress in chosen.items():
            results[row].answers += recalled(prefix, compress(prefix).states, context.questions, context.digits)
            progress.update()
    progress.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", choices=list(TEXTS), default="reporting")
    parser.add_argument(
        "--facts", action=argparse.BooleanOptionalAction, default=True, help="ask for planted facts too"
    )
    parser.add_argument("--codecs", default="", metavar="PATTERN", help="only rows in whose name this is found (regex)")
    parser.add_argument("--layers", type=int, metavar="N", help="cut the model after its first N layers")
    options = parser.parse_args()
    protocol = Protocol()

    @functools.cache
    def of_choosing_texts(layers: int | None) -> Sensitivities:
        model, tokenizer = load(layers)
        found = []
        for name, read in tqdm(TEXTS["choosing"].items(), unit="text", desc="sensitivities of the model"):
            found.append(
                prompt_sensitivities(prefill(model, tokens(tokenizer, name, read(), protocol.prefix), protocol))
            )
        return Sensitivities.mean(found, "texts for choosing")

    known = rows(lambda prefix: of_choosing_texts(options.layers))
    named = {name: row for name, row in known.items() if re.search(options.codecs, name)}
    if not named:
        parser.error(f"--codecs must be found in one of {', '.join(known)}, got {options.codecs!r}")
    for start, reason in unavailable().items():
        left_out = [name for name in named if name.startswith(start)]
        for name in left_out:
            print(f"left out: {name}, since {reason}")
            del named[name]
    results = measure(named, options.texts, facts=options.facts, layers=options.layers, protocol=protocol)
    answers = len(next(iter(results.values())).answers)
    print(
        f"{machine()}; {len(TEXTS[options.texts])} texts for {options.texts}, {protocol.predictions} predictions each"
    )
    header = ["codec", "bits", "×", "KL", "±", "top-1 %", "perplexity", f"recall % of {answers}" if answers else ""]
    print(text_table(header, [[name, *result.cells()] for name, result in results.items()]))


if __name__ == "__main__":
    main()
