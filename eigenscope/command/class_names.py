"""The classes that a configuration may name."""

import inspect
import pydoc
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from jsonargparse._typehints import get_all_subclass_paths

from eigenscope.command.nearest import hint, listed, nearest
from eigenscope.command.type_words import classes


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
    named = _named(name, paths, packages)
    if named is None:
        return f"there is no class {name}{_hint(name, paths, packages)}"
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
        paths = [path for kind in classes(annotation) for path in get_all_subclass_paths(kind)]
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
        except pydoc.ErrorDuringImport:
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
