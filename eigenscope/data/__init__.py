"""Data sets: labelled images, noise, associative recall; reading, drawing, splitting, augmenting, sampling order."""

from eigenscope.data.associative_recall import RecallDataset, RecallTask, ShorterContext, draw_recall
from eigenscope.data.augmentation import AugmentationKind, augmentation
from eigenscope.data.class_folders import class_names
from eigenscope.data.epoch_sampler import EpochIndex, EpochSampler
from eigenscope.data.image_cache import read_class_folders
from eigenscope.data.image_dataset import ImageDataset, LabelledImages, stratified_split
from eigenscope.data.noise_dataset import NoiseDataset
from eigenscope.data.synthetic_images import draw_images

__all__ = [
    "AugmentationKind",
    "EpochIndex",
    "EpochSampler",
    "ImageDataset",
    "LabelledImages",
    "NoiseDataset",
    "RecallDataset",
    "RecallTask",
    "ShorterContext",
    "augmentation",
    "class_names",
    "draw_images",
    "draw_recall",
    "read_class_folders",
    "stratified_split",
]
