"""Reconstruction error of each battery of an array on each type of image."""

import torch
from torch import Tensor

from eigenscope.nn.autoencoders.patches import patch_grid
from eigenscope.nn.batteries.battery_array import BatteryArray

_NUMBERS = 2**22  # of the widest activation of a chunk; a chunk takes about 100 MB
_SMOOTHED = 16  # channels, at most, of the smoothing at full resolution


@torch.no_grad()
def cross_evaluate(array: BatteryArray, images: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """Mean squared error of every battery on the images of every label.

    Works through batteries and images in chunks, in bounded memory however many there are.

    Args:
        array: K batteries.
        images: (N, 3, H, W), on any device.
        labels: (N,) int64, 0 to ``num_labels`` − 1.
        num_labels: T.

    Returns:
        (K, T) float64 on the device of the array; nan for a label without images.

    Raises:
        ValueError: the labels are not as described, or H or W is not a multiple of the patch size.
        torch.linalg.LinAlgError: a battery's points are not finite, as after it diverged.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"images must be (N, 3, H, W) and labels (N,) of int64, got {tuple(images.shape)} and "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise ValueError(f"labels must be in 0 to {num_labels - 1}, got {int(labels.min())} to {int(labels.max())}")
    rows, columns = patch_grid(images.shape[-2], images.shape[-1], array.patch_size)
    widest = max(array.num_points * array.dim, array.architecture["hidden"], _SMOOTHED * array.patch_size**2)
    pairs = max(1, _NUMBERS // (widest * rows * columns))  # of a battery and an image, at a time
    group = min(array.num_batteries, pairs)
    device = next(array.parameters()).device
    labels = labels.to(device)
    sums = torch.zeros(array.num_batteries, num_labels, dtype=torch.float64, device=device)
    for first in range(0, array.num_batteries, group):
        ids = range(first, min(first + group, array.num_batteries))
        part = array if len(ids) == array.num_batteries else array.select(ids)
        for start in range(0, len(images), pairs // group):
            chosen = slice(start, start + pairs // group)
            shown = images[chosen].to(device)
            errors = part(shown)[0].double().sub_(shown).square_().mean((2, 3, 4))
            sums[first : first + len(ids)].index_add_(1, labels[chosen], errors)
    return sums / labels.bincount(minlength=num_labels)
