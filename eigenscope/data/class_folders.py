"""Class folders (``<split>/<class>/*.png``), decoded once into a cached uint8 array."""

import hashlib
from pathlib import Path
from pickle import UnpicklingError

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from eigenscope.data.image_dataset import LabelledImages
from eigenscope.files import replace_atomically

SPLITS = ("train", "test")


def class_names(root: Path) -> list[str]:
    """The classes of a tree ``<root>/{train,test}/<class>/*.png``, sorted; their order is the label.

    Raises:
        ValueError: a split is missing or has no class folder, or a class is there in one split only.
    """
    names = {}
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise ValueError(f"root {root} must hold the folders train and test: {folder} is missing")
        names[split] = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        if not names[split]:
            raise ValueError(f"{folder} holds no class folders; expected <class>/*.png in it")
    for split, other in (SPLITS, SPLITS[::-1]):
        for name in sorted(names[other] - names[split]):
            raise ValueError(f"class folder {root / other / name} has no counterpart {root / split / name}")
    return sorted(names["train"])


def read_class_folders(root: Path, split: str, cache_dir: Path) -> LabelledImages:
    """Reads one split, from the cache where it holds the very same files, else from the PNGs, filling the cache.

    The cache file's name carries a fingerprint of every path, size and modification time; it is written aside and
    renamed, so a run that was killed leaves no part of one. One that was damaged since is named and made again.

    Args:
        root: the tree.
        split: ``train`` or ``test``.
        cache_dir: folder of the cache, made if missing.

    Returns:
        Images in the order of their paths, mapped from the cache file rather than copied.

    Raises:
        ValueError: the tree is incomplete, an image cannot be read or has another size than the first, or the cache
            cannot be written; the message names the file.
    """
    names = class_names(root)
    files = [sorted((root / split / name).glob("*.png")) for name in names]
    for name, found in zip(names, files, strict=True):
        if not found:
            raise ValueError(f"class folder {root / split / name} holds no *.png")
    paths = [path for found in files for path in found]
    cache = cache_dir / f"{split}-{_fingerprint(root, paths)}.pt"
    if cache.exists() and (damage := _damage(cache)):
        print(f"the cache {cache} is damaged or cut short ({damage}): decoding the images again", flush=True)
        cache.unlink()
    if not cache.exists():
        counts = torch.tensor([len(found) for found in files], dtype=torch.int64)
        labels = torch.arange(len(names)).repeat_interleave(counts)
        decoded = {"images": _decode(paths), "labels": labels}
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with replace_atomically(cache) as aside, aside.open("wb") as file:
                torch.save(decoded, file)
        except OSError as error:
            raise ValueError(f"cache_dir {cache_dir} cannot be written ({error}); name a folder that can") from error
    return LabelledImages(**torch.load(cache, mmap=True, weights_only=True))


def _damage(cache: Path) -> str | None:
    """What is wrong with the file's structure; the images themselves are not read."""
    try:
        LabelledImages(**torch.load(cache, mmap=True, weights_only=True))
    except (RuntimeError, OSError, EOFError, UnpicklingError, TypeError, KeyError) as error:
        return str(error).partition("\n")[0]
    return None


def _fingerprint(root: Path, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _decode(paths: list[Path]) -> Tensor:
    first = decode_png(paths[0])
    images = torch.empty(len(paths), *first.shape, dtype=torch.uint8)
    for row, path in enumerate(tqdm(paths, desc=f"decoding {paths[0].parents[1]}, once", unit=" images", disable=None)):
        image = decode_png(path)
        if image.shape != first.shape:
            raise ValueError(f"{path} is {_size(image)} but {paths[0]} is {_size(first)}; all images need one size")
        images[row] = image
    return images


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}×{image.shape[-2]}"


def decode_png(path: Path) -> Tensor:
    """Decodes one image file to (3, H, W) uint8.

    Raises:
        ValueError: the file is not a readable image.
    """
    try:
        with Image.open(path) as file:
            image: Tensor = pil_to_tensor(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's own for damaged files
        raise ValueError(f"{path} is not a readable image: {error}") from error
    return image
