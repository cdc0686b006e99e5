"""What a parser refused, read from the error that it raised."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint, adapt_class_type, adapt_typehints


@dataclass
class Refusal:
    """Where a parser came to a halt.

    jsonargparse wraps an error once per level of nesting, each time in more words. What is needed for one sentence
    stands in the frames below: the option at each level, the class whose arguments were read, value and annotation.

    Attributes:
        reason: the innermost error.
        path: the parts of the key, from the outermost.
        owner: the innermost class (or function) whose arguments were being read.
        arguments: what was given as these.
        parser: that of its arguments.
        kind: the annotation that the owner fits.
        value: what was refused, if it was a value.
        annotation: what it had to conform to.
        frame: the innermost frame.
    """

    reason: BaseException
    path: list[str] = field(default_factory=list)
    owner: Any = None
    arguments: Any = None
    parser: ArgumentParser | None = None
    kind: Any = None
    value: Any = None
    annotation: Any = None
    frame: FrameType | None = None


def refusal(error: BaseException) -> Refusal:
    """Reads the frames of an error and of its causes, from the parser's first to where it was raised.

    Args:
        error: what jsonargparse raised, traceback and causes attached.
    """
    chain = list(_causes(error))
    found = Refusal(chain[-1])
    refused: list[tuple[Any, Any]] = []
    for frame in dict.fromkeys(frame for link in chain for frame, _ in traceback.walk_tb(link.__traceback__)):
        local = frame.f_locals
        if frame.f_code is ActionTypeHint._check_type.__code__:
            found.path += local["self"].dest.split(".")
            refused = []
        elif frame.f_code is adapt_class_type.__code__ and "parser" in local:
            found.owner, found.parser, found.kind = local["val_class"], local["parser"], refused[-1][1]
            found.arguments = local["value"].get("init_args")
            found.path += [] if hasattr(found.owner, "__dataclass_fields__") else ["init_args"]
            refused = []
        elif frame.f_code is adapt_typehints.__code__:
            value = local.get("val_input") if local["val"] is None else local["val"]
            refused.append((value, local["typehint"]))
        found.frame = frame
    # the outermost is the option's own; but if that is a list, or keys below it, the culprit is inside
    simple = [(value, annotation) for value, annotation in refused if not _is_collection(value)]
    found.value, found.annotation = next(iter(simple + refused), (None, None))
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_collection(value: Any) -> bool:
    if isinstance(value, (dict, Namespace)):
        return "class_path" not in value
    return isinstance(value, (list, tuple, set))
