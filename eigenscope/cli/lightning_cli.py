"""LightningCLI for Eigenscope: ``fit``, ``validate``, ``test``, ``predict``, and the dispatch to ``compare``."""

import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out

from eigenscope import callbacks, renamed
from eigenscope.adapters.lightning_names import GivenConfiguration, ignore_moved_checkpoints, quieten
from eigenscope.callbacks._output import written_folders
from eigenscope.callbacks.resuming.run_provenance import RunProvenance
from eigenscope.checkpoints import read_checkpoint
from eigenscope.cli.compare import compare_main, compare_options
from eigenscope.cli.completion import OPTION, SHELLS, completion_script
from eigenscope.cli.errors.build_errors import explain_build, explain_setup, explain_trainer
from eigenscope.cli.errors.monitor_errors import explain_monitor
from eigenscope.cli.errors.parse_errors import explain_parse_error
from eigenscope.cli.errors.parser import ExplainingParser, UsageError, loading_present_names
from eigenscope.cli.errors.runtime_errors import (
    add_step,
    check_writable,
    explain,
    is_from_setup,
    leave_to_main_thread,
    own_error,
)
from eigenscope.cli.errors.suggestions import listed
from eigenscope.cli.errors.value_checks import check_environment, check_values, checked_sources, notes_on
from eigenscope.cli.process.lost_ranks import end_with_launcher, explain_lost_rank
from eigenscope.cli.resume.compatibility import check_network, check_options, find_checkpoint
from eigenscope.cli.resume.prepare_resume import prepare_resume
from eigenscope.cli.resume.warm_start import misshaped, read_weights, unmatched, warm_start
from eigenscope.cli.shipped_configs import with_shipped_configs
from eigenscope.precision import has_bf16


class ConfigurationError(ValueError):
    """A class refused a value of the configuration."""


_LINKED = ("num_classes", "image_size")  # what the data tells the network


class Parser(ExplainingParser, LightningArgumentParser):
    """Lightning's parser, with one sentence for an error."""

    packages = (
        "eigenscope.lightning_modules",
        "eigenscope.datamodules",
        "eigenscope.callbacks",
        "eigenscope.nn",
        "eigenscope.optim",
    )
    more_subcommands = ("compare",)
    linked = tuple(f"model.init_args.net.init_args.{name}" for name in _LINKED)
    explain = staticmethod(explain_parse_error)


for _package in Parser.packages:  # importing a package makes its classes known by their short names
    import_module(_package)


class EigenscopeCLI(GivenConfiguration, LightningCLI):
    """LightningCLI in subclass mode; classes and image size flow from the data to the network."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=RunProvenance,
            seed_everything_default=0,
            parser_class=Parser,
            trainer_defaults={
                "callbacks": [
                    callbacks.ParameterRouting(),
                    callbacks.RunMetadataCallback(),
                    callbacks.TensorBoardLayout(),
                    callbacks.ExactResume(),
                    callbacks.MonitorCheck(),
                ]
            },
            parser_kwargs={
                "description": "Train and examine models while watching their spectra.",
                "epilog": "There is one more subcommand, compare: several configurations, several seeds, one table; "
                "see 'compare --help'.",
            },
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes a parser that takes no abbreviated options: a misspelt one is an error, not its nearest neighbour."""
        return super().init_parser(prog="eigenscope", allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the data knows to the network, ``net``, and guards every training against non-finite numbers."""
        parser.add_lightning_class_args(callbacks.FiniteGuard, "finite_guard")
        parser.add_argument(
            "--warm_start",
            type=str | None,
            help="fit: a checkpoint or .safetensors file to begin with the weights of. Optimizer, epochs and random "
            "streams start afresh; to resume a run use --ckpt_path.",
        )
        parser.add_argument(
            "--warm_start_map",
            type=dict[str, str | None] | None,
            help="fit: where parts of the warm start belong, by the first parts of their names, such as "
            "'{old.part: new.part, net.head: null}'; null leaves a part as initialised.",
        )
        parser.add_argument(
            "--resume_allow",
            action="append",
            metavar="KEY",
            help="fit with --ckpt_path: a key of the configuration, such as data.init_args.batch_size, that may differ "
            "from the checkpoint's on purpose, with all below it; repeatable. The run record keeps the change.",
        )
        for name in _LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.net.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, names of version 0.4 too; without Lightning's warning against ``main(args)`` from Python."""
        given = sys.argv[1:] if args is None else cast(list[str], args)
        notes: dict[str, None] = {}  # in order, each once
        try:
            self._args = renamed.options(given, notes.setdefault)
            check_environment()
            self._sources = checked_sources(self._args)
            with loading_present_names(notes):
                self.config = parser.parse_args(self._args)
        except renamed.RemovedArgumentError as error:
            raise UsageError(str(error)) from error
        check_values(str(self.config.subcommand), self.plain_config(), self._sources, self._args)
        if notes:
            rank_zero_only(print)(f"Names of version 0.4: {', '.join(notes)}.", file=sys.stderr, flush=True)

    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration of the subcommand, as plain values."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Unable to serialize instance")
            text = self.parser.dump(self.config, skip_unset=False)
        config: dict[str, Any] = yaml.safe_load(text)[self.config.subcommand]
        return config

    def with_option(self, error: BaseException) -> str:
        """The words of an error, and the option that they are about."""
        return explain_setup(error, self.plain_config(), self._args)

    def before_instantiate_classes(self) -> None:
        """Replaces bf16 by fp32 where the device would only emulate it, and says so; looks at the checkpoint.

        Raises:
            ConfigurationError: the checkpoint cannot be read, or the configuration contradicts it.
        """
        for line in notes_on(str(self.subcommand), self.plain_config(), self._sources):
            rank_zero_only(print)(f"warning: {line}", file=sys.stderr, flush=True)
        self._avoid_emulated_bf16()
        self._shapes: dict[str, tuple[int, ...]] = {}
        config = self.config[self.subcommand]
        try:
            check_options(str(self.subcommand), config)
            if config.ckpt_path is not None:
                self._check_checkpoint(find_checkpoint(config.ckpt_path))
        except ValueError as error:
            raise ConfigurationError(_naming("ckpt_path", str(error))) from error

    def _check_checkpoint(self, path: Path) -> None:
        """Refuses a checkpoint that contradicts the configuration; a resumed run writes to its own folder."""
        config = self.config[self.subcommand]
        config.ckpt_path = str(path)
        if config.weights_only is False:
            raise ValueError("weights_only must be null or true, got False: reading a checkpoint executes no code")
        checkpoint = read_checkpoint(path)
        now = self.plain_config()
        if self.subcommand == "fit":
            prepared = prepare_resume(config, checkpoint, path, now, _LINKED)
            self.trainer_defaults["callbacks"] += prepared.callbacks
            self.save_config_kwargs |= prepared.provenance
            lines = prepared.lines
        else:
            note = check_network(checkpoint, path, now, _LINKED)
            lines = (note,) if note else ()
            ignore_moved_checkpoints()  # where nothing is saved
        weights = checkpoint["state_dict"].items()
        self._shapes = {name: tuple(weight.shape) for name, weight in weights if isinstance(weight, torch.Tensor)}
        for line in lines:
            rank_zero_only(print)(line, flush=True)

    def after_instantiate_classes(self) -> None:
        """Refuses a subcommand the model has no step for; weights that do not fit the checkpoint's."""
        step = {"validate": "validation_step", "test": "test_step"}.get(self.subcommand or "")
        if step is not None and getattr(type(self.model), step) is getattr(LightningModule, step):
            model = type(self.model).__name__
            raise ConfigurationError(f"there is nothing to {self.subcommand}: {model} has no {step}")
        for name in _LINKED:
            given = [source for source in self._sources if ("model", "net", name) in source.settings]
            value = given and given[-1].settings["model", "net", name]
            known = getattr(self.datamodule, name, None)
            if given and known is not None and value != known:
                raise ConfigurationError(
                    f"model.init_args.net.init_args.{name} {value} ({given[-1].text}) would be dropped: the network "
                    f"takes {name} from its data, which says {known}"
                )
        found = misshaped(self.model, self._shapes)
        if any(key.startswith("model.") for key in self.save_config_kwargs.get("allowed", ())):
            found += unmatched(self.model, self._shapes)
        if found:
            path = self.config[self.subcommand].ckpt_path
            raise ConfigurationError("\n  ".join([f"the weights of checkpoint {path} do not fit the model:", *found]))

    def before_fit(self) -> None:
        """Looks whether logs and checkpoints can be written; takes the weights of a warm start."""
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            check_writable(written_folders(self.trainer))
        config = self.config.fit
        if config.warm_start is None or config.ckpt_path is not None:
            return
        try:
            started = warm_start(self.model, read_weights(Path(config.warm_start)), config.warm_start_map)
        except ValueError as error:
            raise ConfigurationError(_naming("warm_start", str(error))) from error
        rank_zero_only(print)(f"Warm start from {config.warm_start}: {started}.", flush=True)

    def _avoid_emulated_bf16(self) -> None:
        trainer = self.config[self.subcommand].trainer
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        device = {"auto": automatic, "gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}.get(trainer.accelerator)
        if trainer.precision == "bf16-mixed" and device is not None and not has_bf16(device):
            rank_zero_only(print)(f"bf16-mixed was asked for, but this {device} only emulates it: using 32-true.")
            trainer.precision = "32-true"
            self.save_config_kwargs["asked_precision"] = "bf16-mixed"

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer.

        Raises:
            ConfigurationError: a class refused its arguments; the message is the class's own.
        """
        try:
            super().instantiate_classes()
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(explain_build(own_error(error), self.plain_config(), self._args)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer, whose checkpoints are whole and load without executing code."""
        plugins = self.config_init[self.subcommand].get("trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        given = self.config_init[self.subcommand].get("trainer.callbacks") or []
        given = given if isinstance(given, list) else [given]
        self.trainer_defaults["callbacks"] = [  # one that the configuration names, or a subclass, takes its place
            default
            for default in self.trainer_defaults["callbacks"]
            if not any(isinstance(callback, type(default)) for callback in given)
        ]
        try:
            return super().instantiate_trainer(plugins=[*plugins, callbacks.SafeCheckpointIO()], **kwargs)
        except Exception as error:  # a number of devices that is none; two callbacks of one state_key
            sentence = explain_trainer(error, self.plain_config()["trainer"], self._args)
            is_unnamed = isinstance(error, TypeError | RuntimeError)  # of Lightning, which does not say whose they are
            raise ConfigurationError(f"trainer: {sentence}" if is_unnamed else sentence) from error

    def after_fit(self) -> None:
        """Reads the test set, once, at the epoch that a held-out part of the training set has chosen."""
        savers = (saver for saver in self.trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint))
        chosen = next((saver.best_model_path for saver in savers if saver.monitor), "")
        if getattr(self.datamodule, "protocol", None) == "holdout" and chosen:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=chosen)


class _Parsed(Exception):
    """Carries the resolved configuration out of the constructor of :class:`_ParseOnly`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config


class _ParseOnly(EigenscopeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        raise _Parsed(self.plain_config())


def resolve(args: list[str]) -> dict[str, Any]:
    """The full configuration that ``fit`` would run with these arguments, as plain values.

    Raises:
        UsageError: they cannot be understood.
    """
    try:
        _ParseOnly(["fit", *with_shipped_configs(args)])
    except _Parsed as parsed:
        return parsed.config
    raise RuntimeError("the parser returned without a configuration")


class _CompletionOnly(EigenscopeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        others = {"compare": compare_options()}
        print(completion_script(parser, others, sys.argv[-1] if args is None else str(cast(list[str], args)[-1])))
        raise SystemExit(0)


def _completion(shells: list[str]) -> None:
    """Prints the completion script of a shell, and ends."""
    shell = shells[0] if len(shells) == 1 else " ".join(shells)
    if shell not in SHELLS:
        raise UsageError(f"{OPTION}: expected {listed(SHELLS, 'or')}, got {shell or 'nothing'}")
    _CompletionOnly(["fit", shell])


def main(args: list[str] | None = None) -> Any:
    """Runs the command line.

    Args:
        args: what would follow ``eigenscope`` in a shell; None takes it from there.

    Returns:
        The LightningCLI object with ``trainer``, ``model`` and ``datamodule``; of ``compare``, the summaries.

    Raises:
        SystemExit: with code 2, after a sentence on stderr, if what was asked for cannot be understood.
    """
    quieten()
    try:
        args = with_shipped_configs(sys.argv[1:] if args is None else args)
        if args[:1] and args[0].partition("=")[0] == OPTION:
            _completion([*args[0].split("=")[1:], *args[1:]])
        return compare_main(args[1:], resolve) if args[:1] == ["compare"] else EigenscopeCLI(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _naming(option: str, words: str) -> str:
    """The words of an error of one sentence about an option, with its name, if they lack that."""
    return words if option in words or "--" in words or "\n" in words else f"{words} (--{option})"


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
    except (ConfigurationError, callbacks.NonFiniteError) as error:
        sys.exit(f"error: {error}")
    except callbacks.TrainingInterrupted as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signal)  # as a shell has it of a process that a signal ended
    except MisconfigurationException as error:  # Lightning's word, such as of a score that nobody logs
        sys.exit(f"error: {explain_monitor(error) or _with_option(error)}")
    except LinAlgError as error:
        sys.exit(f"error: {' '.join([str(error), *getattr(error, '__notes__', [])])}")  # the guard's note says where
    except Exception as error:
        is_own = isinstance(error, ValueError | ImportError) and is_from_setup(error)
        sentence = (
            _with_option(error) if is_own else explain_monitor(error) or explain_lost_rank(error) or explain(error)
        )
        if sentence is None:
            add_step(error)
            raise
        sys.exit(f"error: {sentence}")
