"""Shell completion of the subcommands and their options: ``eigenscope --print_shtab bash``."""

import argparse
from collections.abc import Mapping, Sequence

import shtab
from jsonargparse import ArgumentParser

from eigenscope.adapters.jsonargparse_names import (
    option_annotation,
    option_strings,
    subcommand_names,
    subcommand_parser,
)
from eigenscope.cli.errors.class_names import own_classes
from eigenscope.cli.errors.type_descriptions import choices

OPTION = "--print_shtab"
SHELLS = tuple(shtab.SUPPORTED_SHELLS)
_FILES = ("--config", "--ckpt_path", "--warm_start")


def completion_script(parser: ArgumentParser, others: Mapping[str, Sequence[str]], shell: str) -> str:
    """A script that teaches a shell the command line; jsonargparse's own takes minutes, for it follows every class.

    Args:
        parser: the whole command line's, with subcommands.
        others: options of further subcommands, by name.
        shell: one of ``SHELLS``.

    Raises:
        MissingNameError: the installed jsonargparse is another one inside.
    """
    root = argparse.ArgumentParser(prog="eigenscope")
    root.add_argument(OPTION, choices=SHELLS, help="print the completion script of a shell")
    commands = root.add_subparsers()
    for name in subcommand_names(parser):
        below = subcommand_parser(parser, name)
        if below is not None:
            _copy(below, commands.add_parser(name, help=name), getattr(parser, "packages", ()))
    for name, options in others.items():
        command = commands.add_parser(name, help=name, add_help=False)
        for option in options:
            _add(command, (option,), ())
    return shtab.complete(root, shell)


def _copy(parser: ArgumentParser, command: argparse.ArgumentParser, packages: Sequence[str]) -> None:
    for name in option_strings(parser):
        if name in ("-h", "--help") or not name.startswith("--") or name.rpartition(".")[2] == "print_shtab":
            continue
        annotation = option_annotation(parser, name[2:].rstrip("+"))
        known = choices(annotation) or own_classes(annotation, packages)
        _add(command, (name, "-c") if name == "--config" else (name,), known)


def _add(command: argparse.ArgumentParser, names: tuple[str, ...], known: Sequence[str]) -> None:
    action = command.add_argument(*names, choices=list(known) or None)
    if names[0] in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]  # which shtab looks for
