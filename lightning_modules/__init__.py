"""Lightning modules; the names here are those that a configuration uses."""

from lightning_modules.image_classification import ImageClassificationModule
from lightning_modules.spectral_autoencoder import SpectralAutoencoderModule

__all__ = ["ImageClassificationModule", "SpectralAutoencoderModule"]
