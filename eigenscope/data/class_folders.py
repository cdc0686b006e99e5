"""Class folders (``<split>/<class>/…``): which images they hold, and what else lies there."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eigenscope.data.image_files import image_extensions
from eigenscope.text import abbreviate_names

SPLITS = ("train", "test")

#: What systems leave in folders, in lower case; names that begin with a dot, such as .DS_Store, are left out as well.
_OF_THE_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
}


@dataclass
class ClassFolders:
    """The files of one split.

    Attributes:
        images: of every class, by its name, sorted; the order of the names is the label.
        skipped: how many files are not images, by the ending of their names.
        nested: images in folders inside a class folder.
        beside: images beside the class folders.
    """

    images: dict[str, list[Path]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    nested: list[Path] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)


def class_names(root: Path) -> list[str]:
    """The classes of a tree ``<root>/{train,test}/<class>/…``, sorted; their order is the label.

    Raises:
        ValueError: a split is missing or has no class folder, or a class is there in one split only.
    """
    names = {}
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            raise ValueError(f"root {root} must hold the folders train and test: {folder} is missing; {_holds(root)}")
        entries = list(_entries(folder))
        names[split] = {entry.name for entry in entries if entry.is_dir()}
        if not names[split]:
            images = sum(_is_image(Path(entry.path)) for entry in entries)
            there = f"{_count(images, 'image')}, but no class folders" if images else "no class folders"
            raise ValueError(f"{folder} holds {there}; expected its images in it as <class>/*.png, *.jpg, …")
    for split, other in (SPLITS, SPLITS[::-1]):
        for name in sorted(names[other] - names[split]):
            alike = next((there for there in sorted(names[split]) if _alike(there) == _alike(name)), None)
            hint = f"; {root / split / alike} is spelt otherwise ({alike!a}, {name!a})" if alike else ""
            raise ValueError(f"class folder {root / other / name} has no counterpart {root / split / name}{hint}")
    return sorted(names["train"])


def list_class_folders(root: Path, split: str) -> ClassFolders:
    """Finds all images of a split by the endings of their names, also in folders inside a class folder.

    Raises:
        ValueError: the tree is incomplete, a class has no image, a folder cannot be read or is a link to one around it,
            or what is named as an image is no file.
    """
    found = ClassFolders()
    for name in class_names(root):
        folder = root / split / name
        files = list(_files(folder, (folder.resolve(),)))
        found.images[name] = sorted(filter(_is_image, files))
        others = Counter(_ending(path) for path in files if not _is_image(path))
        if not found.images[name]:
            raise ValueError(f"class folder {folder} holds no image{f', but {_tally(others)}' if others else ''}")
        found.skipped += others
        found.nested += [path for path in found.images[name] if path.parent != folder]
    for entry in _entries(root / split):
        path = Path(entry.path)
        if _is_image(path) and not entry.is_dir():
            found.beside.append(path)
        elif entry.is_file():
            found.skipped[_ending(path)] += 1
    return found


def skipped_lines(root: Path) -> list[str]:
    """What a tree holds that is not read, or not as its folders may suggest, each in one line."""
    lines = []
    for split in SPLITS:
        folder, found = root / split, list_class_folders(root, split)
        if found.skipped:
            count = _count(found.skipped.total(), "file")
            what = "is not an image" if found.skipped.total() == 1 else "are not images"
            lines.append(f"skipped {count} in {folder} that {what}: {_tally(found.skipped)}")
        if found.beside:
            count = _count(len(found.beside), "image")
            lines.append(f"skipped {count} beside the class folders, such as {printable(found.beside[0])}")
        if found.nested:
            count = _count(len(found.nested), "image")
            lines.append(
                f"{count} in folders inside a class folder belong to that class, such as {printable(found.nested[0])}"
            )
    beside = [entry.name for entry in _entries(root) if entry.is_dir() and entry.name not in SPLITS]
    if beside:
        lines.append(
            f"skipped beside train and test in {root}: {abbreviate_names([printable(Path(name)) for name in beside])}"
        )
    return lines


def printable(path: Path) -> str:
    """A path that a terminal can be given, also if its bytes are no text."""
    return str(path).encode(errors="backslashreplace").decode()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, sorted, without what systems leave there."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if not entry.name.startswith(".") and entry.name.lower() not in _OF_THE_SYSTEM:
            yield entry


def _files(folder: Path, around: tuple[Path, ...]) -> Iterator[Path]:
    """All files below a folder, which lies in the folders ``around``, the last of which is itself."""
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_dir():
            real = path.resolve()
            if real in around:
                raise ValueError(f"folder {path} is a link to {real}, which holds it")
            yield from _files(path, (*around, real))
        elif entry.is_file() or not _is_image(path):
            yield path
        else:
            reason = f"its link leads to {path.readlink()}" if entry.is_symlink() else "it is not a regular file"
            raise ValueError(f"{path} is not a readable image: {reason}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in image_extensions()


def _ending(path: Path) -> str:
    return path.suffix.lower() or "without an ending"


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _holds(root: Path) -> str:
    if root.is_file():
        return f"{root} is a file; if it is an archive, unpack it"
    if not root.exists():
        return f"there is no {root}"
    names = [entry.name for entry in _entries(root)]
    return f"it holds {abbreviate_names(names)}" if names else "it is empty"


def _tally(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
