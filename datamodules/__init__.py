"""Data modules; the names here are those that a configuration uses."""

from datamodules.associative_recall import AssociativeRecallDataModule
from datamodules.cifar100 import CIFAR100DataModule
from datamodules.gradient_spike import GradientSpikeDataModule
from datamodules.heavy_tailed_noise import HeavyTailedNoiseDataModule
from datamodules.synthetic_images import SyntheticImagesDataModule

__all__ = [
    "AssociativeRecallDataModule",
    "CIFAR100DataModule",
    "GradientSpikeDataModule",
    "HeavyTailedNoiseDataModule",
    "SyntheticImagesDataModule",
]
