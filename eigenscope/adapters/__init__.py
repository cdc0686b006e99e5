"""Adapters: the private names of other libraries, one file per library, looked up when they are needed.

A private name may be gone in any release. Every one is read through :class:`Library`, so that nothing fails when it is
imported; where one is gone, the function that needs it does without, as its docstring says, and
:func:`report_fallback` says so. emerging-optimizers and transformers are checked where they are used, in
``eigenscope.optim.emerging`` and ``eigenscope.kv.cache.hugging_face``.
"""

import platform
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

_reported: set[str] = set()


class MissingNameError(AttributeError):
    """The installed version of a library lacks a private name; the message is "<library> <version> has no <name>"."""


@dataclass(frozen=True)
class Library:
    """A library of which private names are used.

    Args:
        name: of the distribution; ``Python`` is the standard library.
    """

    name: str

    def get(self, owner: object, name: str) -> Any:
        """The value of a private name.

        Args:
            owner: what has it; a text is the import path of a module.
            name: of the attribute.

        Raises:
            MissingNameError: the module or the attribute is gone.
        """
        try:
            return getattr(import_module(owner) if isinstance(owner, str) else owner, name)
        except (ImportError, AttributeError) as error:
            place = owner if isinstance(owner, str) else getattr(owner, "__name__", type(owner).__name__)
            raise self._missing(f"{place}.{name}") from error

    def set(self, owner: object, name: str, value: Any) -> None:
        """Sets a private name that is there.

        Raises:
            MissingNameError: the attribute is gone.
        """
        self.get(owner, name)
        setattr(owner, name, value)

    def local(self, frame: FrameType, name: str) -> Any:
        """The value of a variable of one of the library's functions.

        Raises:
            MissingNameError: the function has no such variable, or not yet.
        """
        if name not in frame.f_locals:
            raise self._missing(f"variable {name} in {frame.f_code.co_name}")
        return frame.f_locals[name]

    def _missing(self, what: str) -> MissingNameError:
        try:
            installed = version(self.name)
        except PackageNotFoundError:
            installed = platform.python_version()
        return MissingNameError(f"{self.name} {installed} has no {what}")


def report_fallback(consequence: str, missing: MissingNameError) -> None:
    """Says on stderr, once per process, what is done without a private name.

    Args:
        consequence: a clause, such as "errors are told in jsonargparse's own words".
        missing: the name that is gone.
    """
    line = f"note: {consequence}, because {missing}"
    if line not in _reported:
        _reported.add(line)
        print(line, file=sys.stderr, flush=True)
