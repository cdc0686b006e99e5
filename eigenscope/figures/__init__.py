"""Functions that take numbers and return a matplotlib figure, which belongs to no window and no global list."""

from eigenscope.figures.battery_matrix import battery_matrix
from eigenscope.figures.cv_histogram import cv_histogram
from eigenscope.figures.reconstructions import reconstruction_figure
from eigenscope.figures.spectra import spectrum_figure

__all__ = ["battery_matrix", "cv_histogram", "reconstruction_figure", "spectrum_figure"]
