"""Class names that a configuration may use, and the arguments of these classes."""

import inspect
import pydoc
import typing
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from eigenscope.adapters.jsonargparse_names import subclass_paths
from eigenscope.cli.errors.error_cause import import_fault
from eigenscope.cli.errors.suggestions import hint, listed, nearest
from eigenscope.cli.errors.type_descriptions import classes


def class_fault(name: str, annotation: Any, packages: Sequence[str]) -> str | None:
    """What is wrong with the name of a class, as the end of a sentence.

    Args:
        name: as written, short or with its module.
        annotation: what the class had to be derived from.
        packages: names of packages whose re-exports are the classes offered first.

    Returns:
        None if the class is there and of the right kind.
    """
    paths = known_classes(annotation, packages)
    same = [path for path in paths if path.rpartition(".")[2] == name]
    if len(same) > 1:
        return f"{name} is the short name of {len(same)} classes: give {listed(same, 'or')}"
    named = _named(name, paths, packages)
    if named is None:
        return import_fault(name) or f"there is no class {name}{_hint(name, paths, packages)}"
    kinds = tuple(classes(annotation))
    if inspect.isclass(named) and not issubclass(named, kinds):
        wanted = listed([kind.__name__ for kind in kinds], "or")
        return f"{name} is no {wanted}{hint(None, _short(_own(paths, packages)), 'known are')}"
    if inspect.isabstract(named):
        return f"{name} is abstract, give one derived from it{hint(None, _short(_own(paths, packages)), 'known are')}"
    return None


def known_classes(annotation: Any, packages: Sequence[str]) -> list[str]:
    """The import paths of all loaded classes that fit an annotation, those of some packages first."""
    for package in packages:
        with suppress(ImportError):  # what cannot be imported cannot be offered
            module = import_module(package)
            for name in getattr(module, "__all__", ()):
                getattr(module, name)  # a package may import its parts when they are asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of some subclass somewhere that cannot be imported
        paths = [path for kind in classes(annotation) for path in subclass_paths(kind)]
    return sorted(dict.fromkeys(paths), key=lambda path: not _is_own(path, packages))


def own_classes(annotation: Any, packages: Sequence[str]) -> list[str]:
    """The short names of those classes that fit an annotation and are re-exported by some packages."""
    return _short(_own(known_classes(annotation, packages), packages))


def _named(name: str, paths: Sequence[str], packages: Sequence[str]) -> Any:
    same = [path for path in paths if path.rpartition(".")[2] == name]
    if len(same) == 1:
        (name,) = same
    if "." in name:
        try:
            return pydoc.locate(name)
        except (pydoc.ErrorDuringImport, SystemExit):
            return None
    modules = [import_module(package) for package in packages]
    return next((getattr(module, name) for module in modules if name in getattr(module, "__all__", ())), None)


def _hint(name: str, paths: Sequence[str], packages: Sequence[str]) -> str:
    own = _own(paths, packages)
    if "." in name:
        by_end = [path for path in paths if path.rpartition(".")[2] == name.rpartition(".")[2]]
        return hint(by_end[0] if by_end else nearest(name, paths), _short(own), "known are")
    alike = nearest(name, _short(paths))
    if alike in _short(own):
        return hint(alike, [], "")
    return hint(next((path for path in paths if path.endswith(f".{alike}")), None), _short(own), "known are")


def _own(paths: Sequence[str], packages: Sequence[str]) -> list[str]:
    return [path for path in paths if _is_own(path, packages)]


def _is_own(path: str, packages: Sequence[str]) -> bool:
    return path.rpartition(".")[0] in packages


def _short(paths: Sequence[str]) -> list[str]:
    return sorted(path.rpartition(".")[2] for path in paths)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


#: In place of a value where there is none.
ABSENT = _Absent()


def class_at(class_path: str) -> Any:
    """What the class path of a resolved configuration leads to; None if it leads nowhere."""
    package, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(package), name)
    except (ImportError, AttributeError, ValueError):
        return None


def argument_default(owner: Any, name: str) -> Any:
    """What an argument of a class or function is if it is not given; ``ABSENT`` if it has no default, or is none."""
    for kind in _takers(owner):
        parameter = _parameters(kind).get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return ABSENT


def argument_annotation(owner: Any, name: str) -> Any:
    """How an argument of a class or function is annotated; None if it is not."""
    for kind in _takers(owner):
        try:
            hints = typing.get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
        except (AttributeError, NameError, TypeError):  # no annotations, or some that are not there at run time
            continue
        if name in hints:
            return hints[name]
    return None


def _takers(owner: Any) -> tuple[Any, ...]:
    """A function, or a class and its bases, to which it hands on arguments that it does not name itself."""
    if owner is None:
        return ()
    return inspect.getmro(owner) if inspect.isclass(owner) else (owner,)


def _parameters(owner: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(owner).parameters
    except (TypeError, ValueError):  # written in C
        return {}
