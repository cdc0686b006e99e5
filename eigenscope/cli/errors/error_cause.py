"""Causes of an error in somebody's own code: type and words of the innermost, and the line it was raised in."""

import site
import sysconfig
import traceback
from importlib import import_module
from importlib.util import find_spec
from inspect import isclass
from pathlib import Path

from eigenscope.cli.errors.suggestions import hint, nearest

_PACKAGE = Path(__file__).parents[2]
_FOREIGN: tuple[str | Path, ...] = (  # a sub-package may be a link
    sysconfig.get_path("stdlib"),
    *site.getsitepackages(),
    _PACKAGE,
    *(folder.resolve() for folder in _PACKAGE.iterdir() if folder.is_dir()),
)


def innermost(error: BaseException) -> BaseException:
    """What an error was raised from, to the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def in_words(error: BaseException) -> str:
    """Type, words and line of an error, as the end of a sentence: ``KeyError: 'a' (mynet.py, line 3)``."""
    place = own_line(error)
    return named(error) + (f" ({place})" if place else "")


def named(error: BaseException) -> str:
    """Type and words of an error, on one line."""
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(words.split())}" if words else type(error).__name__


def own_line(error: BaseException) -> str | None:
    """File and line of the innermost frame in somebody's own code; None if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename)}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_own(frame.filename):
            return f"{_relative(frame.filename)}, line {frame.lineno}"
    return None


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def is_own(file: str) -> bool:
    """Whether a file of code is neither a library's nor this package's."""
    path = Path(file)
    if "site-packages" in path.parts or file.startswith("<"):
        return False
    return not any(path.is_relative_to(folder) for folder in _FOREIGN)


def import_fault(name: str) -> str | None:
    """Why a class cannot be had from its module, as the end of a sentence; None if nothing more can be said.

    Args:
        name: the class with its module, such as ``mynet.Net``; or the name of a module alone.
    """
    *modules, last = name.split(".")
    module = None
    for depth in range(1, len(modules) + 1):
        path = ".".join(modules[:depth])
        try:
            module = import_module(path)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == path:
                return _shadowed(module)
            return f"{path} cannot be imported: {in_words(innermost(error))}"
    if module is None:
        return _module_alone(name)
    if hasattr(module, last):
        return None
    shadowed = _shadowed(module)
    if shadowed is not None:
        return shadowed
    if not is_own(getattr(module, "__file__", None) or "<none>"):
        return None
    path = module.__name__
    classes = [f"{path}.{key}" for key, value in vars(module).items() if isclass(value) and value.__module__ == path]
    return f"there is no class {name}{hint(nearest(name, classes), classes, 'there are')}"


def _module_alone(name: str) -> str | None:
    """What is said of a module of somebody's own where a class belongs."""
    if not name.isidentifier() or find_spec(name) is None:
        return None
    module = Path(f"{name}.py") if Path(f"{name}.py").is_file() else Path(name)
    if not module.exists():
        return None
    return f"{name} is a module ({module}), not a class: give one of its classes, such as {name}.Net"


def _shadowed(module: object) -> str | None:
    """What is said where another module is imported than the one of its name in the working directory."""
    top = str(getattr(module, "__name__", "")).partition(".")[0]
    here = next((path for path in (Path(f"{top}.py"), Path(top)) if top and path.exists()), None)
    if here is None:
        return None
    found = getattr(import_module(top), "__file__", None)
    if found is not None and Path(found).is_relative_to(Path.cwd()):
        return None
    return f"{top} is a module of {found or 'Python itself'}, which hides {here} here: rename that"


def options_in(words: str, names: list[str]) -> list[str]:
    """Those of some names that stand in a text as words of their own, the first in the text first."""
    places = {name: _place(name, words) for name in names}
    return sorted((name for name, place in places.items() if place >= 0), key=lambda name: places[name])


def _place(name: str, words: str) -> int:
    start = words.find(name)
    while start >= 0:
        around = words[max(start - 1, 0) : start] + words[start + len(name) : start + len(name) + 1]
        if not any(letter.isalnum() or letter == "_" for letter in around):
            return start
        start = words.find(name, start + 1)
    return -1
