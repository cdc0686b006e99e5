"""Eigenscope: spectra of weights, activations and optimizers while models train."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("eigenscope")
except PackageNotFoundError:  # a checkout that is on the path but not installed
    __version__ = "unknown"
