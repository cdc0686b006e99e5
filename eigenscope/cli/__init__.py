"""The command line: ``fit``, ``validate``, ``test``, ``predict`` by LightningCLI, and ``compare``."""

import sys
from pathlib import Path
from typing import Any

_LINKS = ("callbacks", "configs", "datamodules", "lightning_modules")


def main(args: list[str] | None = None) -> Any:
    """Runs the command line.

    Args:
        args: what would follow ``eigenscope`` in a shell; None takes it from there.

    Returns:
        The LightningCLI object with ``trainer``, ``model`` and ``datamodule``; of ``compare``, the summaries.

    Raises:
        SystemExit: with code 2, after a sentence on stderr, if what was asked for cannot be understood.
    """
    from eigenscope.cli import dispatch  # the door itself imports nothing, so that it can say what is missing

    return dispatch.main(args)


def resolve(args: list[str]) -> dict[str, Any]:
    """The full configuration that ``fit`` would run with these arguments, as plain values.

    Raises:
        UsageError: they cannot be understood.
    """
    from eigenscope.cli import dispatch

    return dispatch.resolve(args)


def script() -> None:
    """The command ``eigenscope``: an error that the user can fix is one sentence instead of a traceback."""
    from eigenscope.stop_signals import StopRequested, stop_signals

    stop_signals.listen()  # before the imports, which take seconds
    try:
        try:
            _script()
        except BaseException:
            stop_signals.raise_again()
            raise
    except StopRequested as stop:
        from eigenscope.cli.process.lost_ranks import end_by_signal

        end_by_signal(stop.signal, str(stop))
    finally:
        stop_signals.close()


def _script() -> None:
    package = Path(__file__).parents[1]
    broken = [name for name in _LINKS if not (package / name).is_dir()]
    if broken:
        sys.exit(
            f"error: {', '.join(f'eigenscope/{name}' for name in broken)} should be symbolic links, but this checkout "
            "was made without them: enable symbolic links (git config core.symlinks true; on Windows also Developer "
            "Mode) and check it out again with 'git checkout -- eigenscope'"
        )
    _find_classes_in_working_directory()
    from eigenscope.cli import dispatch

    dispatch.script()


def _find_classes_in_working_directory() -> None:
    """Lets a configuration name the user's own classes, in modules that shadow no installed package.

    ``python -m eigenscope`` puts the working directory first on ``sys.path``, the console script leaves it out; both
    get it last. In a checkout of Eigenscope, where it holds this package itself, it stays first.
    """
    here, home = Path.cwd(), Path(__file__).parents[2]
    if here != home and sys.path[0] in ("", str(here)):
        del sys.path[0]
    if str(here) not in sys.path:
        sys.path.append(str(here))
