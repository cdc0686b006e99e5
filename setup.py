"""Source distribution with symbolic links; everything else about the package is in ``pyproject.toml``.

Setuptools would put copies of the root folders in the place of the links ``eigenscope/callbacks -> ../callbacks`` and
the like: an unpacked source distribution would hold every such file twice, and run the copy that nobody edits.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class LinkedSdist(sdist):
    """Keeps the links of the package as links."""

    def make_release_tree(self, base_dir: str, files: Sequence[str]) -> None:
        """Copies the files into the folder that is packed, and makes the links."""
        links = [path for path in Path("eigenscope").iterdir() if path.is_symlink()]
        linked = tuple(f"{link}{os.sep}" for link in links)
        super().make_release_tree(base_dir, [file for file in files if not file.startswith(linked)])
        for link in links:
            (Path(base_dir) / link).symlink_to(os.readlink(link))


setup(cmdclass={"sdist": LinkedSdist})
