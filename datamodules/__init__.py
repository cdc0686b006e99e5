"""Data modules; the names here are those that a configuration uses."""

from eigenscope.datamodules.associative_recall import AssociativeRecallDataModule
from eigenscope.datamodules.cifar100 import CIFAR100DataModule
from eigenscope.datamodules.gradient_spike import GradientSpikeDataModule
from eigenscope.datamodules.heavy_tailed_noise import HeavyTailedNoiseDataModule
from eigenscope.datamodules.synthetic_images import SyntheticImagesDataModule

__all__ = [
    "AssociativeRecallDataModule",
    "CIFAR100DataModule",
    "GradientSpikeDataModule",
    "HeavyTailedNoiseDataModule",
    "SyntheticImagesDataModule",
]
