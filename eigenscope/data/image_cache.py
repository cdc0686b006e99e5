"""Images of class folders, decoded once into a cached uint8 array."""

import hashlib
from pathlib import Path
from pickle import UnpicklingError

import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from eigenscope.data import image_files
from eigenscope.data.class_folders import list_class_folders, printable
from eigenscope.data.image_dataset import LabelledImages
from eigenscope.data.image_files import decode_image
from eigenscope.files import replace_atomically


def read_class_folders(root: Path, split: str, cache_dir: Path) -> LabelledImages:
    """Reads one split, from the cache where it holds the very same files, else from the images, filling the cache.

    The cache file's name carries a fingerprint of every path, size and modification time, and of the code that decodes;
    it is written aside and renamed, so a run that was killed leaves no part of one. One that was damaged since is named
    and made again.

    Args:
        root: the tree.
        split: ``train`` or ``test``.
        cache_dir: folder of the cache, made if missing.

    Returns:
        Images in the order of their classes and paths, mapped from the cache file rather than copied.

    Raises:
        ValueError: the tree is incomplete, an image cannot be read or has another size than the first, or the cache
            cannot be written; the message names the file.
    """
    files = list(list_class_folders(root, split).images.values())
    paths = [path for found in files for path in found]
    cache = cache_dir / f"{split}-{_fingerprint(root, paths)}.pt"
    if cache.exists() and (damage := _damage(cache)):
        print(f"the cache {cache} is damaged or cut short ({damage}): decoding the images again", flush=True)
        cache.unlink()
    if not cache.exists():
        labels = torch.arange(len(files)).repeat_interleave(
            torch.tensor([len(found) for found in files], dtype=torch.int64)
        )
        decoded = {"images": _decode(paths, root / split), "labels": labels}
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
    """Of the files and of what decodes them: with other rules the same files are other images."""
    digest = hashlib.sha256(Path(image_files.__file__).read_bytes() + PIL.__version__.encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(f"{path} is not a readable image: {error.strerror}") from error
        name = str(path.relative_to(root)).encode(errors="surrogateescape")
        digest.update(name + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _decode(paths: list[Path], folder: Path) -> Tensor:
    first, transparent = decode_image(paths[0]).image, []
    images = torch.empty(len(paths), *first.shape, dtype=torch.uint8)
    for row, path in enumerate(tqdm(paths, desc=f"decoding {folder}, once", unit=" images", disable=None)):
        decoded = decode_image(path)
        if decoded.image.shape != first.shape:
            sizes = f"{path} is {_size(decoded.image)} but {paths[0]} is {_size(first)}"
            raise ValueError(f"{sizes}; all images need one size")
        images[row] = decoded.image
        if decoded.transparent:
            transparent.append(path)
    if transparent:
        print(
            f"transparency is not applied: {len(transparent):,} of {len(paths):,} images show the colours stored "
            f"behind it, such as {printable(transparent[0])}",
            flush=True,
        )
    return images


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}×{image.shape[-2]}"
