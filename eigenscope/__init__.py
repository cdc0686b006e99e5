"""Eigenscope: spectra while models train. This package is the part that does not need Lightning."""

__version__ = "0.3.0"
