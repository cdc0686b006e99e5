"""One image file as eight bits of red, green and blue, whatever its format and depth."""

import io
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

#: Formats of Pillow that are read; its others may start programs (EPS) or hold no single picture.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF")

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2


@cache
def _readable() -> list[str]:
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


@cache
def image_extensions() -> frozenset[str]:
    """The endings of the names of image files, in lower case, such as ``.png``, ``.jpg``, ``.jpeg`` and ``.tif``."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in _readable())


class DecodedImage(NamedTuple):
    """(3, H, W) uint8, and whether a pixel was transparent, which the colours do not show."""

    image: Tensor
    transparent: bool


def decode_image(path: Path) -> DecodedImage:
    """Decodes an image file upright, as its EXIF orientation says.

    Integers of 9 to 16 bits are scaled so that their largest value becomes 255, and floats so that 1.0 does. Gray
    becomes three equal channels, a palette its colours, CMYK and YCbCr what Pillow makes of them. Transparency and
    colour profiles are not applied.

    Raises:
        ValueError: the file is empty, damaged, of another kind, or so large that it may be meant to fill the memory;
            it holds several pictures; its numbers have no white: 32-bit or signed integers, floats outside [0, 1].
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = io.BytesIO(path.read_bytes())  # Pillow maps an open file, and maps a turned TIFF wrongly
            with Image.open(content, formats=_readable()) as file:
                return _decode(file)
    except UnidentifiedImageError as error:
        reason = "it is empty" if not content.getbuffer() else f"Pillow finds no {', '.join(_readable())} in it"
        raise ValueError(f"{path} is not a readable image: {reason}") from error
    except Exception as error:  # Pillow's decoders raise errors of every kind on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable image: {reason}") from error


def _decode(file: Image.Image) -> DecodedImage:
    pictures = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)  # a photograph may carry its preview
    if pictures > 1:
        raise ValueError(f"it holds {pictures} pictures, as an animation or a stack; save each as a file of its own")
    tags = dict(getattr(file, "tag_v2", {}))  # read before loading, which closes some files
    file.load()
    upright = file if file.format == "TIFF" else _upright(file)  # loading has turned a TIFF already
    if upright.mode.startswith("I") or upright.mode == "F" or _first(tags, _SAMPLE_FORMAT) == _SIGNED:
        gray = _scaled(np.asarray(upright), upright.mode, tags)
        return DecodedImage(torch.from_numpy(gray).expand(3, *gray.shape), transparent=False)
    transparent = False
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        transparent = bool((np.asarray(upright.getchannel("A")) < 255).any())
    pixels = np.array(upright.convert("RGB"))
    return DecodedImage(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), transparent)


def _upright(file: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # metadata may be damaged in as many ways; the picture is whole
        return file


def _scaled(values: np.ndarray, mode: str, tags: dict[int, object]) -> np.ndarray:
    """Gray values of more than eight bits as (H, W) uint8."""
    inverted = _first(tags, _PHOTOMETRIC) == _WHITE_IS_ZERO  # Pillow inverts eight bits, but not more
    scaled: np.ndarray
    if mode == "F":
        if not ((values >= 0) & (values <= 1)).all():  # nor NaN
            raise ValueError(
                f"floats must lie in [0, 1], it has {values.min():.5g} to {values.max():.5g}; scale them, or save "
                "8- or 16-bit integers"
            )
        scaled = (values * 255).round().astype(np.uint8)
        return 255 - scaled if inverted else scaled
    bits = _first(tags, _BITS) or 16
    if _first(tags, _SAMPLE_FORMAT) == _SIGNED or bits > 16:
        kind = "signed" if _first(tags, _SAMPLE_FORMAT) == _SIGNED else "unsigned"
        raise ValueError(f"it has {kind} {bits}-bit integers, of which none is white; save unsigned 8- or 16-bit ones")
    white = 2**bits - 1
    scaled = ((values.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8)
    return 255 - scaled if inverted else scaled


def _first(tags: dict[int, object], tag: int) -> int | None:
    value = tags.get(tag)
    value = value[0] if isinstance(value, tuple) else value
    return value if isinstance(value, int) else None
