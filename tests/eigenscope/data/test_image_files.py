"""Every kind of image file is read as its eight-bit reference, or refused in one sentence with its name."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eigenscope.data.image_files import decode_image, image_extensions


def tiff(values, bits, *, photometric=1, sample_format=1, order="<", extra=b""):
    """An uncompressed TIFF of (H, W, C) numbers."""
    height, width, channels = values.shape
    if bits == 12:
        flat = np.pad(values.reshape(height, -1), ((0, 0), (0, width * channels % 2))).astype(np.uint16)
        first, second = flat[:, ::2], flat[:, 1::2]
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
        data = packed.reshape(height, -1)[:, : (width * channels * 12 + 7) // 8].tobytes()
    else:
        kind = {1: "u", 2: "i", 3: "f"}[sample_format]
        data = values.astype(np.dtype(f"{order}{kind}{bits // 8}")).tobytes()
    shape = [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [photometric])]
    tags = [*shape, (273, 4, [0]), (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(data)])]
    tags.append((339, 3, [sample_format] * channels))
    after = 8 + 2 + 12 * len(tags) + 4
    entries, long = b"", b""
    for tag, kind, numbers in tags:
        numbers = [after + 8 * 6] if tag == 273 else numbers
        content = struct.pack(f"{order}{len(numbers)}{'HI'[kind == 4]}", *numbers)
        if len(content) > 4:
            content, long = struct.pack(f"{order}I", after + len(long)), long + content
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + long.ljust(48, b"\0") + data


def png(values, bits, colour):
    """A PNG of (H, W, C) numbers of 8 or 16 bits."""
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    sealed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def netpbm(values, white):
    kind = b"P5" if values.shape[2] == 1 else b"P6"
    head = b"%s %d %d %d\n" % (kind, values.shape[1], values.shape[0], white)
    return head + values.astype(">u2" if white > 255 else "u1").tobytes()


def pillow(mode, kind, **options):
    """What Pillow writes of the reference in a mode."""

    def write(reference):
        file = io.BytesIO()
        Image.fromarray(reference).convert(mode).save(file, kind, **options)
        return file.getvalue()

    return write


def gray(reference):
    return reference[:, :, :1].astype(np.int64)


def alpha(reference):
    """The reference and a channel of transparency."""
    return np.concatenate([reference, np.arange(reference[:, :, 0].size).reshape(*reference.shape[:2], 1)], 2)


COLOUR = {
    "PNG 8": lambda x: png(x, 8, 2),
    "PNG 16": lambda x: png(x.astype(int) * 257, 16, 2),
    "PNG 8 alpha": lambda x: png(alpha(x), 8, 6),
    "PNG 16 alpha": lambda x: png(alpha(x).astype(int) * 257, 16, 6),
    "TIFF 16": lambda x: tiff(x.astype(int) * 257, 16, photometric=2),
    "TIFF 16 big-endian": lambda x: tiff(x.astype(int) * 257, 16, photometric=2, order=">"),
    "PPM 16": lambda x: netpbm(x.astype(int) * 257, 65535),
    "PPM 10": lambda x: netpbm((x.astype(int) * 1023 + 127) // 255, 1023),
    "TIFF LZW": pillow("RGB", "TIFF", compression="tiff_lzw"),
    "BMP": pillow("RGB", "BMP"),
    "BMP 32": pillow("RGBA", "BMP"),
    "WebP": pillow("RGB", "WEBP", lossless=True),
    "WebP alpha": pillow("RGBA", "WEBP", lossless=True, exact=True),
    "CMYK TIFF": pillow("CMYK", "TIFF"),
    "PPM": pillow("RGB", "PPM"),
}
GRAY = {
    "PNG 8": lambda x: png(gray(x), 8, 0),
    "PNG 16": lambda x: png(gray(x) * 257, 16, 0),
    "PNG 16 shifted": lambda x: png(gray(x) * 256, 16, 0),
    "PNG 16 alpha": lambda x: png(alpha(gray(x)) * 257, 16, 4),
    "TIFF 12": lambda x: tiff((gray(x) * 4095 + 127) // 255, 12),
    "TIFF 16": lambda x: tiff(gray(x) * 257, 16),
    "TIFF 16 big-endian": lambda x: tiff(gray(x) * 257, 16, order=">"),
    "TIFF 16 white is zero": lambda x: tiff(65535 - gray(x) * 257, 16, photometric=0),
    "TIFF 8 white is zero": lambda x: tiff(255 - gray(x), 8, photometric=0),
    "TIFF float": lambda x: tiff(gray(x) / 255, 32, sample_format=3),
    "TIFF float big-endian": lambda x: tiff(gray(x) / 255, 32, sample_format=3, order=">"),
    "TIFF float white is zero": lambda x: tiff(1 - gray(x) / 255, 32, sample_format=3, photometric=0),
    "PGM 16": lambda x: netpbm(gray(x) * 257, 65535),
    "PGM 12": lambda x: netpbm((gray(x) * 4095 + 127) // 255, 4095),
    "L": pillow("L", "PNG"),
    "LA": pillow("LA", "PNG"),
    "GIF": pillow("L", "GIF"),
    "palette": pillow("P", "PNG"),
    "palette, transparent": pillow("P", "PNG", transparency=bytes([0, 128, 255])),
    "colour key": pillow("L", "PNG", transparency=7),
    "colour key RGB": pillow("RGB", "PNG", transparency=(7, 7, 7)),
}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_file_is_its_eight_bit_reference(tmp_path_factory, data, height, width, seed):
    kind, writers = data.draw(st.sampled_from([("gray", GRAY), ("colour", COLOUR)]))
    name = data.draw(st.sampled_from(sorted(writers)))
    reference = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "gray":
        levels = 216 if "palette" in name else 256  # of Pillow's palette, whose grays are 6
        reference[:] = reference[:, :, :1] // 51 * 51 if levels == 216 else reference[:, :, :1]
    path = tmp_path_factory.getbasetemp() / data.draw(st.sampled_from(["image.png", "IMAGE.TIF"]))
    path.write_bytes(writers[name](reference))
    image, transparent = decode_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, height, width)
    assert (image.permute(1, 2, 0).int() - torch.from_numpy(reference).int()).abs().max() <= 1
    assert transparent <= ("alpha" in name or "transparent" in name or "key" in name)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_its_reference_within_its_loss(tmp_path, mode):
    ramp = torch.arange(64.0).outer(torch.ones(64)).mul(4).byte()
    path = tmp_path / "photo.JPEG"
    path.write_bytes(pillow(mode, "JPEG", quality=95)(ramp.expand(3, 64, 64).permute(1, 2, 0).contiguous().numpy()))
    assert (decode_image(path).image.int() - ramp.int()).abs().max() <= 4


def test_black_and_white_is_read(tmp_path):
    path = tmp_path / "letter.png"
    Image.fromarray(np.eye(5, dtype=bool)).save(path)
    assert torch.equal(decode_image(path).image, torch.eye(5).mul(255).byte().expand(3, 5, 5))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_is_upright(tmp_path, kind, orientation):
    left_to_right = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None], 16, 0)
    turned = np.rot90(left_to_right, {1: 0, 3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(turned).save(path, kind, exif=exif.tobytes())
    image = decode_image(path).image
    assert image.shape == (3, 16, 32)
    assert (image.int() - torch.from_numpy(left_to_right).int()).abs().max() <= 4


def test_damaged_metadata_do_not_matter(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8), "white").save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert decode_image(path).image.min() == 255


def test_the_preview_in_a_photograph_does_not_matter(tmp_path):
    path = tmp_path / "photo.jpg"
    small = Image.new("RGB", (2, 2), "white")
    Image.new("RGB", (8, 8), "white").save(path, "MPO", save_all=True, append_images=[small])
    assert decode_image(path).image.shape == (3, 8, 8)


ONE = np.arange(12).reshape(3, 4, 1)


def frames(kind):
    file = io.BytesIO()
    first, *others = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
    first.save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "Pillow finds no PNG, JPEG, .* in it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "Pillow finds no PNG"),  # would start a program
        (png(np.zeros((1, 1, 1)), 8, 0).replace(struct.pack(">II", 1, 1), struct.pack(">II", 20000, 20000)), ""),
        (frames("GIF"), "it holds 3 pictures, as an animation or a stack"),
        (frames("TIFF"), "it holds 3 pictures"),
        (frames("WEBP"), "it holds 3 pictures"),
        (frames("PNG"), "it holds 3 pictures"),
        (tiff(ONE - 6, 16, sample_format=2), "it has signed 16-bit integers"),
        (tiff(ONE - 6, 8, sample_format=2), "it has signed 8-bit integers"),
        (tiff(ONE, 32), "it has unsigned 32-bit integers"),
        (tiff(ONE - 6, 32, sample_format=2), "it has signed 32-bit integers"),
        (tiff(ONE, 32, sample_format=3), r"floats must lie in \[0, 1\], it has 0 to 11; scale them"),
        (tiff(ONE * np.nan, 32, sample_format=3), "floats must lie in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_an_image_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "image.tif"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"image.tif is not a readable image: {reason}") as caught:
        decode_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    content = pillow("RGB", kind)(noise)
    path = tmp_path / "image.png"
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r"image\.png is not a readable image: "):
            decode_image(path)


def test_a_folder_and_nothing_are_refused_too(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png is not a readable image: No such file or directory"):
        decode_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="is not a readable image: Is a directory"):
        decode_image(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_file_is_refused(tmp_path):
    path = tmp_path / "image.png"
    path.touch(mode=0)
    with pytest.raises(ValueError, match="is not a readable image: Permission denied"):
        decode_image(path)


def test_the_usual_endings_are_known():
    usual = ".png .jpg .jpeg .jpe .jfif .bmp .webp .tif .tiff .gif .ppm .pgm .pbm .pnm"
    assert image_extensions() >= set(usual.split())
    assert not image_extensions() & {".eps", ".pdf", ".psd", ".ico", ".txt", ".npy", ".xbm"}
