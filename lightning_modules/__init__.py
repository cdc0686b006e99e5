"""Lightning modules; the names here are those that a configuration uses."""

from lightning_modules.image_classification import ImageClassificationModule

__all__ = ["ImageClassificationModule"]
