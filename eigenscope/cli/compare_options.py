"""Command line of ``compare``: its options, its help, and what is refused before anything is trained."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from eigenscope.adapters.jsonargparse_names import option_strings
from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.errors.suggestions import hint, nearest

_MOST = 2**32  # seeds are below
_OF_FIT = ("--trainer", "--model", "--data", "--finite_guard")

_ABOUT = """\
Trains each configuration with each seed, one process per run, and prints the head-to-head: mean ± standard deviation
over seeds, and the differences to the first arm with 95 % intervals, paired by seed. Arms take turns within a seed
(A B, then B A), so that what else the machine does meets them alike. Runs that finished with the same resolved
configuration are not trained again: given again, the command goes on where it was stopped."""

_MORE = """\
examples:
  eigenscope compare --config eigenscope:demo --config eigenscope:demo_svd --seeds 0 1 2
      two arms, six runs
  eigenscope compare --config eigenscope:svae_noise_small --config eigenscope:svae_noise_small eigenscope:cv/align_hand
      the files of an arm follow one --config
  eigenscope compare --config a.yaml --config b.yaml --seeds 0 1 2 --trainer.max_epochs 3 --data.init_args.batch_size 64
      any option of fit is for all arms

what is printed and kept:
  while it trains      the table of each run's epochs, and how long all runs that are left will take
  the head-to-head     best and last score, that of the test set where it was read, parameters, seconds per epoch (the
                       median over a run's epochs) with the order in which runs were made, and whether other
                       processes kept the machine busy meanwhile; what the arms' settings differ in; warnings where
                       scores do not compare: other data, protocol, commit or hardware
  DIR/A-vs-B.txt       the same, and DIR/A-vs-B.json as numbers
  DIR/ARM/seedS-…      the folder of each run, as fit leaves it, with the configuration beside it as seedS-….yaml
  the scoreboard       a row for each run, in the file that the configurations name (runs/scoreboard.csv)
"""


@dataclass(frozen=True)
class CompareOptions:
    """What ``compare`` was asked for: the files of each arm by its name, seeds, where runs are kept, options of fit."""

    arms: dict[str, list[str]]
    seeds: list[int]
    folder: Path
    overrides: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"compare: {message.removeprefix('argument ')}")


def compare_options(args: Sequence[str], fit_parser: Callable[[], Any]) -> CompareOptions:
    """Reads the command line after ``compare``.

    Args:
        args: the arguments.
        fit_parser: makes the parser of ``fit``.

    Raises:
        UsageError: they are wrong; one sentence says why.
        SystemExit: help was asked for.
    """
    parser = _parser()
    if {"-h", "--help"} & set(args):
        print(f"{parser.format_help()}\n{_options_of_fit(fit_parser().format_help())}")
        raise SystemExit(0)
    options, overrides = parser.parse_known_args(args)
    _check_known(overrides, fit_parser)
    given = [[str(Path(file).resolve()) for file in files] for files in options.config]
    twice = next((files for files, same in zip(options.config, given, strict=True) if given.count(same) > 1), None)
    if twice is not None:
        parser.error(f"--config: {' '.join(twice)} is given twice; every arm needs files of another name or folder")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: every seed once, got {' '.join(map(str, options.seeds))}")
    if wrong := [seed for seed in options.seeds if not 0 <= seed < _MOST]:
        parser.error(f"--seeds: a seed must be from 0 to {_MOST - 1}, got {wrong[0]}")
    for name, why in {
        "--seed_everything": "give the seeds with --seeds",
        "--ckpt_path": "compare trains every run from its beginning; to resume one use fit",
    }.items():
        if any(override.partition("=")[0] == name for override in overrides):
            parser.error(f"{name}: {why}")
    if any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        parser.error("compare starts the processes of its runs itself: start it once, not under torchrun or srun")
    arms = dict(zip(_names(options.config), options.config, strict=True))
    return CompareOptions(arms, options.seeds, options.dir, overrides)


def asks_for_class_help(args: Sequence[str]) -> list[str]:
    """The option that asks for the help of a class, ``--model.help DeiT``, with its value; empty if there is none."""
    for place, arg in enumerate(args):
        option, equals, _ = arg.partition("=")
        if option.startswith("--") and option.endswith(".help"):
            value = args[place + 1 : place + 2]
            return [arg] if equals or not value or value[0].startswith("-") else [arg, *value]
    return []


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eigenscope compare",
        usage="eigenscope compare --config YAML [YAML ...] [--config YAML [YAML ...] ...] [--seeds SEED [SEED ...]]\n"
        "                          [--dir DIR] [options of fit]",
        allow_abbrev=False,
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--config",
        nargs="+",
        action="append",
        required=True,
        metavar="YAML",
        help="an arm, repeated for the next one; several files after one --config are layered, the later wins; "
        "eigenscope:NAME is a shipped configuration. The first arm is what the others are compared with",
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="SEED",
        help="seeds, the same for all arms, at least two for a standard deviation and intervals (default: 0)",
    )
    where = parser.add_argument_group("where runs are kept")
    where.add_argument(
        "--dir", type=Path, default=Path("runs/compare"), help="folder of runs and tables (default: %(default)s)"
    )
    return parser


def _options_of_fit(text: str) -> str:
    """The groups of fit's help that make sense for all arms."""
    groups = [group for group in text.split("\n\n") if any(f"\n  {option} " in group for option in _OF_FIT)]
    head = (
        "Options of fit, for all arms (also --warm_start and --label; --model.help CLASS and its like show the "
        "arguments of a class):"
    )
    return "\n\n".join([head, *groups])


def _check_known(overrides: Sequence[str], fit_parser: Callable[[], Any]) -> None:
    """Refuses an option that neither compare nor fit has, with the nearest of both."""
    names = [arg.partition("=")[0] for arg in overrides if arg.startswith("--")]
    if all("." in name for name in names):
        return  # fit says what is wrong with them
    known = [name for name in option_strings(fit_parser()) if name.startswith("--") and "." not in name]
    for name in names:
        if "." not in name and name not in known:
            meant = nearest(name, ["--seeds", "--config", "--dir", *known])
            raise UsageError(f"compare: {name} is unknown{hint(meant, ['--config', '--seeds', '--dir'], 'known are')}")


def _names(arms: Sequence[Sequence[str]]) -> list[str]:
    """What arms are called: their files' names, each with as many of its folders as tell it from all other files."""
    paths = [[Path(file).resolve().with_suffix("").parts for file in files] for files in arms]
    distinct = {parts for files in paths for parts in files}

    def name(parts: tuple[str, ...]) -> str:
        ends = (parts[-depth:] for depth in range(1, len(parts) + 1))
        unique = next(end for end in ends if sum(other[-len(end) :] == end for other in distinct) == 1)
        return "-".join(part.strip("/") for part in unique)

    return ["+".join(map(name, files)) for files in paths]
