"""Labelled images: reading, drawing, splitting, augmenting, noise, and the order they are visited in."""

from eigenscope.data.augmentation import AugmentationKind, augmentation
from eigenscope.data.class_folders import class_names, read_class_folders
from eigenscope.data.epoch_sampler import EpochIndex, EpochSampler
from eigenscope.data.image_dataset import ImageDataset, LabelledImages
from eigenscope.data.noise_dataset import NoiseDataset
from eigenscope.data.stratified import stratified_split
from eigenscope.data.synthetic_images import draw_images

__all__ = [
    "AugmentationKind",
    "EpochIndex",
    "EpochSampler",
    "ImageDataset",
    "LabelledImages",
    "NoiseDataset",
    "augmentation",
    "class_names",
    "draw_images",
    "read_class_folders",
    "stratified_split",
]
