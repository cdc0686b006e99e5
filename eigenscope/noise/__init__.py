"""Keyed random numbers and noise: a sample depends on its key and index, not on how it is loaded."""

from eigenscope.noise.curriculum import Curriculum
from eigenscope.noise.distributions import CURRICULUM_TIERS, NOISE_TYPES, noise_ids
from eigenscope.noise.mixtures import battery_mixtures, pick_from_mixtures
from eigenscope.noise.noise_images import draw_noise
from eigenscope.noise.streams import random_bits, stream_key, uniform

__all__ = [
    "CURRICULUM_TIERS",
    "NOISE_TYPES",
    "Curriculum",
    "battery_mixtures",
    "draw_noise",
    "noise_ids",
    "pick_from_mixtures",
    "random_bits",
    "stream_key",
    "uniform",
]
