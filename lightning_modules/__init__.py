"""Lightning modules; the names here are those that a configuration uses."""

from lightning_modules.associative_recall import AssociativeRecallModule
from lightning_modules.battery import BatteryModule
from lightning_modules.gradient_replay import GradientReplayModule
from lightning_modules.image_classification import ImageClassificationModule
from lightning_modules.spectral_autoencoder import SpectralAutoencoderModule
from lightning_modules.spectral_vae import SpectralVAEModule

__all__ = [
    "AssociativeRecallModule",
    "BatteryModule",
    "GradientReplayModule",
    "ImageClassificationModule",
    "SpectralAutoencoderModule",
    "SpectralVAEModule",
]
