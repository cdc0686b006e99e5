"""Keyed random numbers: a sample's draw depends on its key and index, not on how it is loaded."""

from eigenscope.noise.streams import random_bits, stream_key, uniform

__all__ = ["random_bits", "stream_key", "uniform"]
