"""Adapter of the emerging-optimizers package, with a check of its signatures.

Its import takes a second or two, so the modules that use it import it when their first optimizer is made.
"""

import inspect
from collections.abc import Collection, Mapping
from importlib.metadata import version
from types import ModuleType

EMERGING_OPTIMIZERS = "emerging_optimizers"  # the module; errors about it carry this as their name
_NEEDED = ">=0.3,<0.4"


def check_functions(module: ModuleType, functions: Mapping[str, Collection[str]]) -> None:
    """Checks that a module of emerging-optimizers has functions that take these arguments.

    Args:
        module: the module.
        functions: by name, their arguments that are used.

    Raises:
        ImportError: it lacks some; the message names them, the installed version and the version needed.
    """
    for name, arguments in functions.items():
        function = getattr(module, name, None)
        if function is None:
            raise missing_from_library(f"no {module.__name__}.{name}")
        missing = sorted(set(arguments) - set(inspect.signature(function).parameters))
        if missing:
            raise missing_from_library(f"{name} without {', '.join(missing)}")


def missing_from_library(what: str) -> ImportError:
    """The error to raise where emerging-optimizers is another one than was built on.

    Args:
        what: what the installed version has, or has not.
    """
    return ImportError(
        f"emerging-optimizers {version('emerging-optimizers')} is installed, with {what}; eigenscope.optim needs "
        f"emerging-optimizers{_NEEDED}",
        name=EMERGING_OPTIMIZERS,
    )
