"""Real text that a machine with this project has, for the KV-cache benchmark on a language model.

Manuals, source code, licences and read-me files of Python and of packages that the project depends on. What a text says
differs a little between versions. Texts for choosing a codec and texts for reporting it have nothing in common.
"""

import importlib
import importlib.metadata
import inspect
import pydoc
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Purpose = Literal["choosing", "reporting"]


def topic(name: str) -> str:
    """A chapter of Python's language reference, as ``help()`` shows it."""
    return str(importlib.import_module("pydoc_data.topics").topics[name])


def manual(module: str) -> str:
    """All of a module's docstrings, as ``help()`` shows them."""
    return pydoc.plain(pydoc.render_doc(importlib.import_module(module)))


def source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def licence(package: str) -> str:
    files = importlib.metadata.files(package) or []
    found = sorted((file for file in files if "LICEN" in file.name.upper()), key=str)
    return "\n".join(file.locate().read_text(encoding="utf-8", errors="replace") for file in found)


def readme(package: str) -> str:
    return str(importlib.metadata.metadata(package).get_payload())


TEXTS: dict[Purpose, dict[str, Callable[[], str]]] = {
    "choosing": {
        "reference of compound statements": lambda: topic("compound"),
        "licences of scipy": lambda: licence("scipy"),
        "manual of difflib": lambda: manual("difflib"),
        "source of textwrap": lambda: source("textwrap"),
    },
    "reporting": {
        "reference of special names": lambda: topic("specialnames"),
        "reference of the debugger": lambda: topic("debugger"),
        "licences of pillow": lambda: licence("pillow"),
        "manual of statistics": lambda: manual("statistics"),
        "source of heapq": lambda: source("heapq"),
        "read-me of lightning": lambda: readme("lightning"),
    },
}
FACT_TOPICS: dict[Purpose, tuple[str, ...]] = {  # of the language reference; facts are planted in each
    "choosing": ("types", "formatstrings"),
    "reporting": ("customization", "execmodel", "assignment", "string-methods"),
}
PLACES = (
    "harbour office",
    "north gate",
    "museum archive",
    "river station",
    "old library",
    "glass factory",
    "mountain hotel",
    "city theatre",
    "wine cellar",
    "radio tower",
    "school kitchen",
    "botanical garden",
)
START = "<|im_start|>user\nRead this text.\n\n"
FACT = " The access code of the {place} is {code}.\n"
QUESTION = (
    "\n\nWhat is the access code of the {place}?<|im_end|>\n<|im_start|>assistant\n"
    "The access code of the {place} is {code}"
)


def tokens(tokenizer: Any, name: str, text: str, count: int) -> Tensor:
    """The first ``count`` tokens (1, count) of a text.

    Raises:
        ValueError: it has fewer.
    """
    ids = tokenizer(text, return_tensors="pt").input_ids
    if ids.shape[1] < count:
        raise ValueError(f"the text {name!r} must have at least {count} tokens, got {ids.shape[1]}")
    return ids[:, :count]


@dataclass(frozen=True)
class Facts:
    """A context with facts, and a question about each.

    Attributes:
        prefix: (1, n) tokens.
        questions: of each fact the tokens (m,) from the question to the last digit of the answer.
        digits: at the end of each question, how many tokens are the answer.
    """

    prefix: Tensor
    questions: list[Tensor]
    digits: int


def planted(tokenizer: Any, name: str, length: int, planted_before: int, seed: int) -> Facts:
    """A topic of the language reference with a fact after random lines of it.

    Args:
        tokenizer: of a model that is spoken to in ChatML and has a token for each digit.
        name: of the topic.
        length: tokens of the prefix.
        planted_before: every fact ends before this token.
        seed: of the codes and of the lines.

    Raises:
        ValueError: the text has too few tokens or lines.
    """
    draw = random.Random(f"{name} {seed}")
    codes = draw.sample(range(1000, 10000), len(PLACES))
    pairs = [{"place": place, "code": str(code)} for place, code in zip(PLACES, codes, strict=True)]
    facts = [tokenizer(FACT.format(**pair)).input_ids for pair in pairs]
    draw.shuffle(facts)
    start = tokenizer(START).input_ids
    extra = len(start) + sum(map(len, facts))
    text = tokens(tokenizer, name, topic(name), max(1, length - extra))[0].tolist()
    ends = [at + 1 for at, token in enumerate(text[: planted_before - extra]) if "\n" in tokenizer.decode([token])]
    if len(ends) < len(facts):
        raise ValueError(f"the text {name!r} must have at least {len(facts)} lines before the window, got {len(ends)}")
    ids, begun = list(start), 0
    for end, fact in zip(sorted(draw.sample(ends, len(facts))), facts, strict=True):
        ids += text[begun:end] + fact
        begun = end
    ids += text[begun:]
    questions = [torch.tensor(tokenizer(QUESTION.format(**pair)).input_ids) for pair in pairs]
    digits = len(pairs[0]["code"])
    for question, pair in zip(questions, pairs, strict=True):
        if tokenizer.decode(question[-digits:]) != pair["code"]:
            raise ValueError(f"the tokenizer must have a token for each digit, got {tokenizer.decode(question[-1:])!r}")
    return Facts(torch.tensor([ids]), questions, digits)
