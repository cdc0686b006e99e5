"""Matplotlib figures: functions from tensors and numbers to a figure without a window or global state."""

from eigenscope.figures.battery_matrix import battery_matrix
from eigenscope.figures.kv import layer_heat_maps, rate_distortion_figure
from eigenscope.figures.point_sets import cv_histogram, spectrum_figure
from eigenscope.figures.reconstructions import reconstruction_figure
from eigenscope.figures.rotation import angle_figure, eigenvalue_figure, overlap_figure

__all__ = [
    "angle_figure",
    "battery_matrix",
    "cv_histogram",
    "eigenvalue_figure",
    "layer_heat_maps",
    "overlap_figure",
    "rate_distortion_figure",
    "reconstruction_figure",
    "spectrum_figure",
]
