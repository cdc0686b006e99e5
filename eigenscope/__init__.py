"""Eigenscope: spectra of weights, activations and optimizers while models train."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """``__version__``, read from the installed metadata when somebody asks: importing reads no file."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("eigenscope")
        except PackageNotFoundError:  # a checkout that is on the path but not installed
            return "unknown"
