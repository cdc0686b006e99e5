"""The table of the matrix in the documentation, written and read."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.matrix.cells import PRECISIONS
from tests.matrix.covering import AXES, EXPERIMENTS, whole
from tests.matrix.running import Result

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
_HEAD = """# What runs with what

<!-- Written by `{command}`. -->
Every shipped experiment, alone and with the overlays that go with it, at every precision, on a CPU at a tiny size: two
batches of training and one of validation. Beside the precision a cell chooses {axes}.

- `yes`: it runs, leaves a checkpoint to resume from, and logs what the same cell logs in 32-true, in one process, with
  TensorBoard and without loader processes. A metric m agrees within 8 ε max(1, |m|), ε = 2^-7 in bf16 and 2^-10 in
  fp16, and within 2e-3 in 32-true; of accuracies half the samples may change sides. On two ranks their weights are
  equal to the bit, and metrics of random matrices, of which every rank has its own, are left out; so are sizes of
  updates in `bf16-true` and `16-true`, which are below what a weight is rounded to.
- `as bf16-mixed`: a CPU has no mixed precision in fp16, so bf16-mixed is used, and a line says so.
- `refused`: one sentence before training, below.

Written by `{command}`: {count} of {all} cells; {marks}. `make matrix` runs all of them, and continues where it
was interrupted. In the covering set every experiment meets every precision. `make test` runs every experiment in
32-true, and of the covering set cells in which every pair of choices occurs; `make test-all` runs more of it.

| experiment | {precisions} |
|---|{rules}
"""


def rows(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    """Experiment and precision to the marks of its cells."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        found.setdefault((result.cell.experiment, result.cell.precision), []).append(result.mark)
    return {key: ", ".join(sorted(set(marks))) for key, marks in found.items()}


def written(results: Sequence[Result], command: str) -> str:
    """The page."""
    marks = Counter(result.mark for result in results)
    axes = [f"{name} {', '.join(map(str, values))}" for name, values in AXES.items() if name != "precision"]
    page = _HEAD.format(
        command=command,
        axes="; ".join(axes),
        count=len(results),
        all=sum(1 for _ in whole()),
        marks=", ".join(f"{count} {mark}" for mark, count in sorted(marks.items())),
        precisions=" | ".join(PRECISIONS),
        rules="---|" * len(PRECISIONS),
    )
    cells = rows(results)
    for experiment in EXPERIMENTS:
        words = [cells.get((experiment, precision), "not run") for precision in PRECISIONS]
        page += f"| {experiment.replace('+', ' + ')} | {' | '.join(words)} |\n"
    for mark, title in (("refused", "Refusals"), ("fault", "Faults")):
        sentences = Counter(result.sentence for result in results if result.mark == mark)
        lines = [f"- {count} cells: `{sentence}`" for sentence, count in sorted(sentences.items())]
        page += "\n".join([f"\n## {title}\n", *lines, ""]) if lines else ""
    return page


def read() -> dict[tuple[str, str], str]:
    """The marks of the page, as :func:`rows` gives them."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if re.match(r"\| (?!experiment )", line):
            experiment, *marks = [word.strip() for word in line.strip("|").split("|")]
            found |= {(experiment.replace(" + ", "+"), p): mark for p, mark in zip(PRECISIONS, marks, strict=True)}
    return found
