"""The installed emerging-optimizers, and whether it has what is built on it."""

import inspect
from importlib.metadata import version

_NEEDED = ">=0.3,<0.4"


def check_arguments(optimizer: type, arguments: set[str]) -> None:
    """Checks that a class of emerging-optimizers takes these arguments.

    Args:
        optimizer: the class.
        arguments: names of its constructor's arguments.

    Raises:
        ImportError: it lacks some; the message names them, the installed version and the version needed.
    """
    missing = sorted(arguments - set(inspect.signature(optimizer).parameters))
    if missing:
        raise missing_from_library(f"{optimizer.__name__} without {', '.join(missing)}")


def missing_from_library(what: str) -> ImportError:
    """The error to raise where emerging-optimizers is another one than was built on.

    Args:
        what: what the installed version has, or has not.
    """
    return ImportError(
        f"emerging-optimizers {version('emerging-optimizers')} is installed, with {what}; eigenscope.optim needs "
        f"emerging-optimizers{_NEEDED}"
    )
