"""Lightning modules; the names here are those that a configuration uses."""

from eigenscope.lightning_modules.associative_recall import AssociativeRecallModule
from eigenscope.lightning_modules.battery import BatteryModule
from eigenscope.lightning_modules.gradient_replay import GradientReplayModule
from eigenscope.lightning_modules.image_classification import ImageClassificationModule
from eigenscope.lightning_modules.spectral_autoencoder import SpectralAutoencoderModule
from eigenscope.lightning_modules.spectral_vae import SpectralVAEModule

__all__ = [
    "AssociativeRecallModule",
    "BatteryModule",
    "GradientReplayModule",
    "ImageClassificationModule",
    "SpectralAutoencoderModule",
    "SpectralVAEModule",
]
