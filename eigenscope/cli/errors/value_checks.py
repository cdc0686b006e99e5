"""Checks of a whole command line: order of its sources, ranges of numbers, options without effect."""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from eigenscope.cli.errors.config_location import origin
from eigenscope.cli.errors.config_order import ConfigOrderError, check_order, said_of_order
from eigenscope.cli.errors.config_sources import ConfigFileError, Source, sources
from eigenscope.cli.errors.number_ranges import number_fault
from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.errors.suggestions import listed
from eigenscope.cli.errors.without_effect import twice, without_effect

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_SECTIONS = {"model", "data", "trainer", "finite_guard", "seed_everything"}
_NUMBERS = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT", "PL_GLOBAL_SEED"),
    *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
)


def checked_sources(args: Sequence[str]) -> list[Source]:
    """The files and options of a command line.

    Raises:
        UsageError: a file is ambiguous, or a later source undoes an earlier one.
    """
    subcommand = next((arg for arg in args if arg in _SUBCOMMANDS), "")
    if any(value == "" for option, value in pairwise(args) if option in ("--config", "-c")):
        raise UsageError("--config: expected a file, got an empty text")
    try:
        found = sources(args, subcommand)
        check_order(found)
    except (ConfigFileError, ConfigOrderError) as error:
        raise UsageError(str(error)) from error
    overlays = [source for source in found if source.is_file]
    if overlays and not any(source.chooses(part) for source in found for part in ("model", "data")):
        sets = {key[0] for source in overlays for key in (*source.settings, *source.added)}
        if sets <= _SECTIONS:
            names = listed([source.text for source in overlays])
            raise UsageError(f"{names} changes parts of an experiment, of which none is given with --config")
    return found


def check_environment() -> None:
    """Refuses environment variables that Lightning would read as numbers and are none.

    Raises:
        UsageError: one is not a whole number.
    """
    for name in _NUMBERS:
        value = os.environ.get(name)
        if value is not None and not value.strip().lstrip("-").isdecimal():
            raise UsageError(f"the environment variable {name} must be a whole number, got {value!r}")


def check_values(subcommand: str, config: Mapping[str, Any], given: Sequence[Source], args: Sequence[str]) -> None:
    """Refuses numbers that make no sense, callbacks given twice, and options of a class that another replaces.

    Args:
        subcommand: what is to be done.
        config: resolved, as nested dictionaries and lists.
        given: its sources.
        args: the command line.

    Raises:
        UsageError: in one sentence.
    """
    fault = number_fault(config)
    if fault is not None:
        path, value, expected = fault
        keys = [part for part in path if not part.isdecimal()]
        raise UsageError(f"{origin([keys], value, args)}: {expected}, got {value}")
    repeated = twice(config["trainer"].get("callbacks"), given)
    if repeated is not None:
        raise UsageError(repeated)
    for number, source in enumerate(given):
        for key in source.settings if not source.is_whole else ():
            later = next((other for other in given[number + 1 :] if _chooses_class_above(other, key)), None)
            overridden = later is not None and source.is_file and not later.is_file  # as options are for
            if later is not None and not overridden and not _is_there(config, key):
                raise UsageError(f"{source.text} would be dropped: {later.text} after it chooses another class")


def notes_on(subcommand: str, config: Mapping[str, Any], given: Sequence[Source]) -> list[str]:
    """What is to be said of a command line that is legal, and does something else than it seems to."""
    notes = said_of_order(given)
    if subcommand == "fit":
        notes += without_effect(config, {key for source in given for key in source.settings})
    return notes


def _chooses_class_above(source: Source, key: tuple[str, ...]) -> bool:
    above = [key[:length] for length in range(1, len(key))]
    return any(isinstance(source.settings.get(part, source.settings.get((*part, "class_path"))), str) for part in above)


def _is_there(config: Any, key: tuple[str, ...]) -> bool:
    """Whether a resolved configuration has a key; ``init_args`` stand between, and lists are not looked into."""
    for part in key:
        if not isinstance(config, Mapping):
            return True
        if part not in config and isinstance(config.get("init_args"), Mapping):
            config = config["init_args"]
        if part not in config:
            return False
        config = config[part]
    return True
