"""Names of the shipped configurations: ``--config eigenscope:demo`` works from any working directory."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.errors.suggestions import hint, nearest
from eigenscope.results.run_metadata import FILE_NAME

_PREFIX = "eigenscope:"
_OPTIONS = ("--config", "-c")
_FOLDER = Path(__file__).parents[1] / "configs"


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Replaces every ``eigenscope:NAME`` that follows ``--config`` or ``-c`` by the path of that shipped file.

    The prefix always means a shipped configuration; a file of one's own that is called so is ``./eigenscope:NAME``.

    Args:
        args: a command line; several values may follow one ``--config``, as ``compare`` takes them.

    Raises:
        UsageError: there is no such configuration.
    """
    found, is_config = [], False
    for arg in args:
        option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
        is_config = option in _OPTIONS if option else is_config
        if is_config and value.startswith(_PREFIX):
            value = str(shipped_config(value.removeprefix(_PREFIX)))
        found.append(f"{option}{equals}{value}")
    return found


def shipped_config(name: str) -> Path:
    """The file of a shipped configuration.

    Args:
        name: its path below ``eigenscope/configs``, such as ``demo`` or ``optimizer/soap.yaml``; ``.yaml`` may be
            left out.

    Raises:
        UsageError: there is none; the message holds the folder with all of them and the nearest name.
    """
    folder = _FOLDER.resolve()  # of a checkout the folder at the root, without the link
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    path = files.get(name.removesuffix(".yaml"))
    if path is None:
        same_end = (known for known in files if known.rpartition("/")[2] == name)
        meant = next(same_end, None) or nearest(name, files)
        proposal = hint(meant and f"{_PREFIX}{meant}", [], "")
        raise UsageError(f"there is no configuration {_PREFIX}{name} in {folder}{proposal}")
    return path


def shipped_name(path: Path) -> str | None:
    """What a shipped configuration's file is called after ``eigenscope:``; None of any other file."""
    try:
        return path.resolve().relative_to(_FOLDER.resolve()).with_suffix("").as_posix()
    except ValueError:
        return None


def experiment_name(files: Iterable[Any] | None) -> str | None:
    """What an experiment is called after its first configuration file, or after the run that has saved that.

    Args:
        files: paths, in the order in which they were given.
    """
    first = next((Path(str(file)) for file in files or () if file is not None), None)
    if first is None:
        return None
    if first.name == "config.yaml":  # as in runs/demo/version_0
        return first.absolute().parents[1].name if (first.parent / FILE_NAME).exists() else None
    return first.stem
