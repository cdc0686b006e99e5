"""Parse failure: option, value and annotation, read from the frames of a jsonargparse error."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import (
    ActionTypeHint,
    adapt_class_type,
    adapt_typehints,
    raise_union_unexpected_value,
)


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
            found.owner, found.parser = local["val_class"], local["parser"]
            found.kind = (_simple(refused) or refused[-1:])[0][1]  # all branches of a union, not the one that was tried
            found.arguments = local["value"].get("init_args")
            found.path += [] if hasattr(found.owner, "__dataclass_fields__") else ["init_args"]
            refused = []
        elif frame.f_code is adapt_typehints.__code__:
            value = local.get("val_input")  # which is left as it was written, if it was a mapping
            value = value if local["val"] is None or isinstance(value, dict) else local["val"]
            refused.append((value, local["typehint"]))
        found.frame = frame
    # the outermost is the option's own; but if that is a list, or keys below it, the culprit is inside
    found.value, found.annotation = next(iter(_simple(refused) + refused), (None, None))
    return found


def _simple(refused: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(value, annotation) for value, annotation in refused if not _is_collection(value)]


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = _telling_branch(link) or link.__cause__


def _telling_branch(error: BaseException) -> BaseException | None:
    """Of the errors of a union's branches the first that comes from a class's arguments; its cause is just the first.

    A value for ``str | Shape`` that holds the class and its arguments was not meant to be a text.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code is not raise_union_unexpected_value.__code__:
        return None
    branches: list[BaseException] = frames[-1].f_locals["exceptions"]
    return next(filter(_is_of_arguments, branches), None)


def _is_of_arguments(error: BaseException) -> bool:
    frames = (frame for link in _causes(error) for frame, _ in traceback.walk_tb(link.__traceback__))
    return any(frame.f_code is adapt_class_type.__code__ for frame in frames)


def _is_collection(value: Any) -> bool:
    if isinstance(value, (dict, Namespace)):
        return "class_path" not in value
    return isinstance(value, (list, tuple, set))
