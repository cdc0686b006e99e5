"""Reconstruction grid: images beside their reconstructions and errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # imported where it is used: matplotlib takes half a second, and reads files
    from matplotlib.figure import Figure

_ONE_COLUMN = 8  # images; more are shown in two columns
_CELL, _GAP, _LABEL, _HEADER = 128, 6, 150, 28  # pixels: an image of 32, 64 or 128 is magnified by a whole number
_DPI = 100
_NOT_FINITE = torch.tensor([255, 0, 255], dtype=torch.uint8)


def reconstruction_figure(inputs: Tensor, reconstructions: Tensor, names: Sequence[str]) -> Figure:
    """One row an image: what it is, input, reconstruction, and error = reconstruction − input.

    The three pictures of a row share one scale, which the row states. An image in [0, 1] is shown as it is, and its
    error as 0.5 + error; any other, such as noise, from −q (black) over 0 (grey) to q (white), with q the 99th
    percentile of its magnitude, so that a few values of a heavy tail do not turn the rest grey. What is beyond is
    drawn as the nearest end, what is not finite in magenta. A row also gives the MSE, the power (mean square of the
    input, which is the error of a reconstruction that is 0) and their ratio, of all pixels.

    Args:
        inputs: (N, 3, H, W) real, N >= 1.
        reconstructions: same shape.
        names: N names.

    Returns:
        A figure of N rows, in two columns if there are more than eight.

    Raises:
        ValueError: the shapes or the number of names do not agree, or the images are not floating point.
    """
    from matplotlib.figure import Figure

    _check(inputs, reconstructions, names)
    count = len(inputs)
    columns = 1 if count <= _ONE_COLUMN else 2
    rows = math.ceil(count / columns)
    block = _LABEL + 3 * (_CELL + _GAP)
    width, height = columns * block + _GAP, _HEADER + rows * (_CELL + _GAP)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for number in range(count):
        column, row = divmod(number, rows)
        left, top = column * block + _GAP, height - _HEADER - row * (_CELL + _GAP)
        image, reconstruction = (batch[number].detach().cpu().double() for batch in (inputs, reconstructions))
        error = reconstruction - image
        low, high = _range(image)
        half = (high - low) / 2
        pictures = {
            "input": _pixels(image, low, high),
            "reconstruction": _pixels(reconstruction, low, high),
            "error": _pixels(error, -half, half),
        }
        figure.text(
            (left + _LABEL - 2 * _GAP) / width,
            (top - _CELL / 2) / height,
            _label(names[number], image, reconstruction, low, high),
            ha="right",
            va="center",
            fontsize=9,
            linespacing=1.4,
        )
        for place, (title, pixels) in enumerate(pictures.items()):
            x = left + _LABEL + place * (_CELL + _GAP)
            axes = figure.add_axes(
                (x / width, (top - _CELL) / height, _CELL / width, _CELL / height),
                xticks=[],
                yticks=[],
                label=f"{names[number]}: {title}",
            )
            axes.imshow(pixels.numpy())
            if row == 0:
                axes.set_title(title, fontsize=10, pad=5)
    return figure


def _check(inputs: Tensor, reconstructions: Tensor, names: Sequence[str]) -> None:
    if inputs.ndim != 4 or inputs.shape[1] != 3 or 0 in inputs.shape or not inputs.is_floating_point():
        raise ValueError(f"inputs must be real images (N, 3, H, W), got {inputs.dtype} of shape {tuple(inputs.shape)}")
    if reconstructions.shape != inputs.shape:
        raise ValueError(
            f"reconstructions must be {tuple(inputs.shape)} like inputs, got {tuple(reconstructions.shape)}"
        )
    if len(names) != len(inputs):
        raise ValueError(f"names must be as many as inputs, {len(inputs)}, got {len(names)}")


def _range(image: Tensor) -> tuple[float, float]:
    """The values drawn black and white."""
    finite = image[image.isfinite()]
    if not len(finite) or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    magnitudes = finite.abs()
    q = float(magnitudes.kthvalue(math.ceil(0.99 * len(magnitudes))).values) or float(magnitudes.max())
    return -q, q


def _pixels(image: Tensor, low: float, high: float) -> Tensor:
    """(3, H, W) to (H, W, 3) of 0 to 255."""
    pixels = ((image - low) / (high - low)).clamp(0, 1).mul(255).round().nan_to_num().to(torch.uint8).movedim(0, -1)
    return torch.where(image.isfinite().all(0)[..., None], pixels, _NOT_FINITE)


def _label(name: str, image: Tensor, reconstruction: Tensor, low: float, high: float) -> str:
    mse, power = float((reconstruction - image).square().mean()), float(image.square().mean())
    lines = [name, f"MSE {mse:#.3g}", f"power {power:#.3g}"]
    if power > 0 and math.isfinite(mse / power):
        lines.append(f"MSE/power {mse / power:#.3g}")
    lines.append("shown: " + ("0 to 1" if low == 0 else f"±{high:#.3g}"))
    for what, pixels in (("input", image), ("output", reconstruction)):
        if count := int((~pixels.isfinite()).sum()):
            lines.append(f"{what}: {count:,} not finite")
    return "\n".join(lines)
