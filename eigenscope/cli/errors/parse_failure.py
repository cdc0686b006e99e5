"""Parse failure: option, value and annotation, read from the frames of a jsonargparse error."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from eigenscope.adapters.jsonargparse_names import (
    ClassStep,
    OptionStep,
    ValueStep,
    is_of_class,
    step_of,
    union_errors,
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

    Raises:
        MissingNameError: the installed jsonargparse is another one inside.
    """
    chain = list(_causes(error))
    found = Refusal(chain[-1])
    refused: list[tuple[Any, Any]] = []
    for frame in dict.fromkeys(frame for link in chain for frame, _ in traceback.walk_tb(link.__traceback__)):
        match step_of(frame):
            case OptionStep(key):
                found.path += key.split(".")
                refused = []
            case ClassStep(owner, arguments, parser):
                found.owner, found.arguments, found.parser = owner, arguments, parser
                found.kind = (_simple(refused) or refused[-1:])[0][1]  # all branches of a union, not the one tried
                found.path += [] if hasattr(owner, "__dataclass_fields__") else ["init_args"]
                refused = []
            case ValueStep(value, annotation):
                refused.append((value, annotation))
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
    branches = union_errors(frames[-1]) if frames else []
    return next(filter(_is_of_arguments, branches), None)


def _is_of_arguments(error: BaseException) -> bool:
    frames = (frame for link in _causes(error) for frame, _ in traceback.walk_tb(link.__traceback__))
    return any(map(is_of_class, frames))


def _is_collection(value: Any) -> bool:
    if isinstance(value, (dict, Namespace)):
        return "class_path" not in value
    return isinstance(value, (list, tuple, set))
