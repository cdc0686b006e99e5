"""Image augmentation whose random numbers are a function of the sample, not of the loader process."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import v2

AugmentationKind = Literal["recipe", "crop_flip", "none"]


def augmentation(kind: AugmentationKind, image_size: int) -> Callable[[Tensor], Tensor] | None:
    """The torchvision transform of a name, for one uint8 image (3, H, W).

    Args:
        kind: ``recipe`` is a random crop after padding by an eighth of the side (4 of 32), a horizontal flip and
            RandAugment with 2 operations of magnitude 9; ``crop_flip`` leaves RandAugment out; ``none`` is None.
        image_size: side in pixels.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in get_args(AugmentationKind):
        raise ValueError(f"augmentation must be one of {', '.join(get_args(AugmentationKind))}, got {kind!r}")
    if kind == "none":
        return None
    steps: list[torch.nn.Module] = [v2.RandomCrop(image_size, padding=image_size // 8), v2.RandomHorizontalFlip()]
    if kind == "recipe":
        steps.append(v2.RandAugment(num_ops=2, magnitude=9))
    transform: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return transform


def augment_keyed(transform: Callable[[Tensor], Tensor], images: Tensor, seeds: list[int]) -> Tensor:
    """Applies a torchvision transform to each image with torch's generator set to the image's seed.

    torchvision's transforms take one image and draw from torch's global generator; it is put back afterwards.

    Args:
        transform: of one image (3, H, W).
        images: (N, 3, H, W) uint8.
        seeds: N signed 64-bit integers.

    Returns:
        (N, 3, H, W) uint8.
    """
    generator = torch.default_generator

    def transform_keyed(image: Tensor, seed: int) -> Tensor:
        generator.manual_seed(seed)
        return transform(image)

    state = generator.get_state()
    try:
        return torch.stack([transform_keyed(image, seed) for image, seed in zip(images, seeds, strict=True)])
    finally:
        generator.set_state(state)
