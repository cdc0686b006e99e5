"""Values that are null where a class takes none: jsonargparse counts them as not given, and the class would fail."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_origin

from eigenscope.command.class_arguments import argument_annotation, argument_default, class_at
from eigenscope.command.type_words import branches

_PLAIN = (bool, int, float, str)


def unfit_null(config: Mapping[str, Any]) -> tuple[list[str], Any] | None:
    """The first argument of a class that is null and should not be.

    Args:
        config: resolved, as nested dictionaries and lists.

    Returns:
        The parts of its key, and the argument's annotation, of plain types and literals; None if there is none.
    """
    return next(_unfit(config, [], None), None)


def _unfit(value: Any, path: list[str], owner: Any) -> Iterator[tuple[list[str], Any]]:
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            owner = class_at(value["class_path"])
        for key, item in value.items():
            if item is not None:
                yield from _unfit(item, [*path, key], owner if key == "init_args" else None)
            elif owner is not None and path[-1] == "init_args":
                annotation = argument_annotation(owner, key)
                if _is_plain(annotation) and argument_default(owner, key) is not None:
                    yield [*path, key], annotation
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unfit(item, [*path, str(number)], None)


def _is_plain(annotation: Any) -> bool:
    parts = branches(annotation)
    return all(part in _PLAIN or get_origin(part) is Literal for part in parts)
