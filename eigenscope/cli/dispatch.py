"""Dispatch of the command line: LightningCLI's subcommands, ``compare``, completion; errors as one sentence."""

import sys
import traceback
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out

from eigenscope import callbacks
from eigenscope.adapters.jsonargparse_names import option_strings, subcommand_parser
from eigenscope.adapters.lightning_names import (
    own_experiment,
    quieten,
)
from eigenscope.cli.compare import compare_main
from eigenscope.cli.compare_options import compare_parser
from eigenscope.cli.completion import OPTION, SHELLS, completion_script
from eigenscope.cli.errors.monitor_errors import explain_monitor
from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.errors.runtime_errors import (
    add_step,
    explain,
    is_from_setup,
    leave_to_main_thread,
)
from eigenscope.cli.errors.suggestions import listed
from eigenscope.cli.lightning_cli import ConfigurationError, EigenscopeCLI
from eigenscope.cli.process.lost_ranks import end_by_signal, end_with_launcher, explain_lost_rank
from eigenscope.cli.shipped_configs import with_shipped_configs
from eigenscope.stop_signals import stop_signals


class _Parsed(Exception):
    """Carries what was asked for out of the constructor of :class:`EigenscopeCLI`."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found


class _ParseOnly(EigenscopeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        raise _Parsed(self.plain_config())


class _ParserOnly(EigenscopeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Parsed(subcommand_parser(parser, "fit"))


def resolve(args: list[str]) -> dict[str, Any]:
    """The full configuration that ``fit`` would run with these arguments, as plain values.

    Raises:
        UsageError: they cannot be understood.
    """
    found: dict[str, Any] = _found(_ParseOnly, ["fit", *with_shipped_configs(args)])
    return found


def fit_parser() -> Any:
    """The parser of ``fit``."""
    return _found(_ParserOnly, ["fit"])


def _found(kind: type[EigenscopeCLI], args: list[str]) -> Any:
    try:
        kind(args)
    except _Parsed as parsed:
        return parsed.found
    raise RuntimeError("the parser returned without a configuration")


class _CompletionOnly(EigenscopeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        others = {"compare": option_strings(compare_parser())}
        print(completion_script(parser, others, str(cast(list[str], args)[-1])))
        raise SystemExit(0)


def _completion(shells: list[str]) -> None:
    """Prints the completion script of a shell, and ends."""
    shell = shells[0] if len(shells) == 1 else " ".join(shells)
    if shell not in SHELLS:
        raise UsageError(f"{OPTION}: expected {listed(SHELLS, 'or')}, got {shell or 'nothing'}")
    _CompletionOnly([shell])


def main(args: list[str] | None = None) -> Any:
    """Runs the command line, as :func:`eigenscope.cli.main` says."""
    quieten()
    stop_signals.forget()
    try:
        args = with_shipped_configs(sys.argv[1:] if args is None else args)
        if args[:1] and args[0].partition("=")[0] == OPTION:
            _completion([*args[0].split("=")[1:], *args[1:]])
        if args[:1] == ["compare"]:
            return compare_main(args[1:], resolve, fit_parser)
        with own_experiment():
            return EigenscopeCLI(args)
    except UsageError as error:
        stop_signals.raise_again()
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _with_option(error: BaseException) -> str:
    """The words of an error of setup, and the option that they are about, if that can be told."""
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    cli = next((each for each in frames if isinstance(each, EigenscopeCLI)), None)
    return str(error) if cli is None else cli.with_option(error)


def script() -> None:
    """The command as installed: errors the user can fix are one sentence instead of a traceback."""
    end_with_launcher()
    leave_to_main_thread()
    try:
        main()
        if stop_signals.received is not None:
            name = stop_signals.received.name
            end_by_signal(stop_signals.received, f"{name} came after the last step: the training is finished")
    except (ConfigurationError, callbacks.NonFiniteError) as error:
        sys.exit(f"error: {error}")
    except callbacks.TrainingInterrupted as error:
        end_by_signal(error.signal, str(error), patience=300)
    except MisconfigurationException as error:  # Lightning's word, such as of a score that nobody logs
        sys.exit(f"error: {explain_monitor(error) or _with_option(error)}")
    except LinAlgError as error:
        sys.exit(f"error: {' '.join([str(error), *getattr(error, '__notes__', [])])}")  # the guard's note says where
    except Exception as error:
        is_own = isinstance(error, ValueError | ImportError) and is_from_setup(error)
        lost = explain_lost_rank(error)
        if lost is not None and stop_signals.received is not None:  # that one heard it before the ranks could agree
            name = stop_signals.received.name
            end_by_signal(stop_signals.received, f"{name} ended the run; no checkpoint was saved of that moment")
        sentence = _with_option(error) if is_own else explain_monitor(error) or lost or explain(error)
        if sentence is None:
            add_step(error)
            raise
        sys.exit(f"error: {sentence}")
