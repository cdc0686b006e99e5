"""LightningCLI for Eigenscope: ``fit``, ``validate``, ``test`` and ``predict``."""

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from eigenscope import callbacks, renamed
from eigenscope.adapters.lightning_names import (
    GivenConfiguration,
    claim_versions,
    ignore_absent_callbacks,
    ignore_moved_checkpoints,
    keep_signals,
)
from eigenscope.callbacks._output import written_folders
from eigenscope.callbacks.resuming.run_provenance import RunProvenance
from eigenscope.checkpoints import averages_in, read_checkpoint
from eigenscope.cli.default_callbacks import Optional, default_callbacks, usable, wanted
from eigenscope.cli.errors.build_errors import explain_build, explain_setup, explain_trainer
from eigenscope.cli.errors.parse_errors import explain_parse_error
from eigenscope.cli.errors.parser import ExplainingParser, UsageError, loading_present_names
from eigenscope.cli.errors.runtime_errors import (
    check_writable,
    explain_logger,
    own_error,
)
from eigenscope.cli.errors.value_checks import check_environment, check_values, checked_sources, notes_on
from eigenscope.cli.evaluation import Evaluation, nothing_to_do
from eigenscope.cli.resume.compatibility import check_network, check_options, find_checkpoint
from eigenscope.cli.resume.prepare_resume import prepare_resume
from eigenscope.cli.resume.warm_start import misshaped, read_weights, unmatched, warm_start
from eigenscope.cli.run_label import run_label
from eigenscope.cli.shipped_configs import experiment_name, shipped_name
from eigenscope.loader_processes import guard_loader_processes
from eigenscope.precision import has_bf16, precision_name
from eigenscope.stop_signals import stop_signals


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

    _shipped: ClassVar[
        dict[tuple[str | None, ...], Any]
    ] = {}  # what files that do not change stand for, once a process

    def __init__(self, args: ArgsType = None) -> None:
        self._given = sys.argv[1:] if args is None else cast(list[str], args)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=RunProvenance,
            seed_everything_default=0,
            parser_class=Parser,
            trainer_defaults={"callbacks": default_callbacks()},
            parser_kwargs={
                "description": "Train and examine models while watching their spectra.",
                "epilog": "There is one more subcommand, compare: several configurations, several seeds, one table; "
                "see 'compare --help'.",
            },
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # which calls it on an instance
        """The one that the command line begins with, or all: a parser of each takes a tenth of a short run."""
        known = super().subcommands()
        return {name: skipped for name, skipped in known.items() if self._given[:1] == [name]} or known

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes a parser that takes no abbreviated options: a misspelt one is an error, not its nearest neighbour."""
        return super().init_parser(prog="eigenscope", allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the data knows to the network, ``net``, and guards every training against non-finite numbers."""
        parser.add_lightning_class_args(callbacks.FiniteGuard, "finite_guard")
        parser.add_argument(
            "--without",
            type=list[Optional] | None,
            help="callbacks that every run has by default and this one leaves out, such as '[Scoreboard, EpochTable]'; "
            "one that trainer.callbacks names takes the place of its default.",
        )
        parser.add_argument(
            "--warm_start",
            type=str | None,
            help="a checkpoint or .safetensors file to begin with the weights of. Optimizer, epochs and random "
            "streams start afresh; to resume a run use --ckpt_path.",
        )
        parser.add_argument(
            "--warm_start_map",
            type=dict[str, str | None] | None,
            help="where parts of the warm start belong, by the first parts of their names, such as "
            "'{old.part: new.part, net.head: null}'; null leaves a part as initialised.",
        )
        parser.add_argument(
            "--resume_allow",
            action="append",
            metavar="KEY",
            help="fit with --ckpt_path: a key of the configuration, such as data.init_args.batch_size, that may differ "
            "from the checkpoint's on purpose, with all below it; repeatable. The run record keeps the change.",
        )
        parser.add_argument(
            "--label",
            type=str | list[str] | None,
            help="fit: what the run is called beside its name, on the scoreboard, in TensorBoard and in its record, "
            "before all that it has otherwise than its first configuration file.",
        )
        for name in _LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.net.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, names of version 0.4 too; without Lightning's warning against ``main(args)`` from Python."""
        notes: dict[str, None] = {}  # in order, each once
        try:
            self._args = renamed.options(self._given, notes.setdefault)
            check_environment()
            self._sources = checked_sources(self._args)
            with loading_present_names(notes):
                self.config = parser.parse_args(self._args)
                plain = self.plain_config()
                if self.config.subcommand == "fit":
                    plain["label"] = self.config.fit.label = self._label(parser, self._args, plain)
        except renamed.RemovedArgumentError as error:
            raise UsageError(str(error)) from error
        check_values(str(self.config.subcommand), plain, self._sources, self._args)
        self._notes = notes_on(str(self.config.subcommand), plain, self._sources)
        if notes:
            rank_zero_only(print)(f"Names of version 0.4: {', '.join(notes)}.", file=sys.stderr, flush=True)

    def _label(self, parser: LightningArgumentParser, given: list[str], plain: dict[str, Any]) -> list[str]:
        """What the run has otherwise than its configuration file."""

        def of_files(files: list[str]) -> Any:
            names = tuple(shipped_name(Path(file)) for file in files[1::2])
            if names in self._shipped:
                return self._shipped[names]
            try:
                found = self.plain_config(parser.parse_args(["fit", *files]))
            except UsageError:  # they hold no whole configuration
                found = None
            finally:
                parser.args = given  # which errors name
            if all(names):
                self._shipped[names] = found
            return found

        return run_label(given, plain, of_files)

    def plain_config(self, config: Namespace | None = None) -> dict[str, Any]:
        """The resolved configuration of the subcommand, or another, as plain values."""
        config = self.config if config is None else config
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Unable to serialize instance")  # as of a device, which becomes text
            text = self.parser.dump(config, skip_unset=False, skip_validation=True)  # which took as long as parsing
        plain: dict[str, Any] = yaml.safe_load(text)[config.subcommand]
        return plain

    def with_option(self, error: BaseException) -> str:
        """The words of an error, and the option that they are about."""
        return explain_setup(error, self.plain_config(), self._args)

    def before_instantiate_classes(self) -> None:
        """Replaces a precision that the device has not, and says so; looks at the checkpoint.

        Raises:
            ConfigurationError: the checkpoint cannot be read, or the configuration contradicts it.
        """
        for line in self._notes:
            rank_zero_only(print)(f"warning: {line}", file=sys.stderr, flush=True)
        self._replace_precision()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._continues: Path | None = None
        config = self.config[self.subcommand]
        self._evaluation = Evaluation(str(self.subcommand))
        if self.subcommand != "fit":
            config.trainer.logger = False  # figures go to the record of the checkpoint's run
            asked = any(("warm_start",) in source.settings and not source.is_file for source in self._sources)
            if config.ckpt_path is not None and not asked:  # what the run of a saved configuration began with
                config.warm_start = None
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
            self._continues = prepared.folder
            lines = prepared.lines
        else:
            self._evaluation = Evaluation(str(self.subcommand), path, checkpoint)
            note = check_network(checkpoint, path, now, _LINKED)
            lines = tuple(line for line in (note, averages_in(checkpoint)) if line)
            ignore_moved_checkpoints()  # where nothing is saved
            ignore_absent_callbacks()  # nor trained
        weights = checkpoint["state_dict"].items()
        self._shapes = {name: tuple(weight.shape) for name, weight in weights if isinstance(weight, torch.Tensor)}
        for line in lines:
            rank_zero_only(print)(line, flush=True)

    def after_instantiate_classes(self) -> None:
        """Refuses a subcommand the model has no step for; weights that do not fit the checkpoint's.

        A checkpoint that Lightning would load unasked is refused too.
        """
        if self.config[self.subcommand].ckpt_path is None and SLURMEnvironment.detect():
            for path in sorted(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")):
                raise ConfigurationError(
                    f"Lightning would begin with {path}, which its requeueing under SLURM has left, whatever its "
                    f"configuration: resume from it with --ckpt_path {path}, or move it away"
                )
        if (problem := nothing_to_do(str(self.subcommand), self.model)) is not None:
            raise ConfigurationError(problem)
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
            claim_versions(self.trainer)
        self._start_warm()

    def before_validate(self) -> None:
        """Takes the weights of a warm start; says so if there are no trained ones."""
        self._start_warm()
        self._evaluation.begin(self.trainer, self.config[self.subcommand].warm_start)

    def after_validate(self) -> None:
        """Records the figures in the run whose checkpoint was evaluated."""
        self._evaluation.end(self.trainer)

    before_test = before_predict = before_validate
    after_test = after_predict = after_validate

    def _start_warm(self) -> None:
        config = self.config[self.subcommand]
        if config.warm_start is None or config.ckpt_path is not None:
            return
        try:
            started = warm_start(self.model, read_weights(Path(config.warm_start)), config.warm_start_map)
        except ValueError as error:
            raise ConfigurationError(_naming("warm_start", str(error))) from error
        rank_zero_only(print)(f"Warm start from {config.warm_start}: {started}.", flush=True)

    def _replace_precision(self) -> None:
        """16-mixed by bf16-mixed on a CPU, as Lightning does, and bf16-mixed by 32-true where it is only emulated."""
        trainer = self.config[self.subcommand].trainer
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        device = {"auto": automatic, "gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}.get(trainer.accelerator)
        asked = precision_name(trainer.precision)
        if asked not in ("16-mixed", "bf16-mixed") or device is None:
            return
        emulated = not has_bf16(device)
        if asked == "16-mixed" and device == "cpu":
            trainer.precision = "32-true" if emulated else "bf16-mixed"
            reason = "a CPU has no mixed precision in fp16" + (" and this one only emulates bf16" if emulated else "")
        elif asked == "bf16-mixed" and emulated:
            trainer.precision, reason = "32-true", f"this {device} only emulates it"
        else:
            return
        rank_zero_only(print)(f"{asked} was asked for, but {reason}: using {trainer.precision}.", flush=True)
        self.save_config_kwargs["asked_precision"] = asked

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
            if (sentence := explain_logger(error)) is not None:  # as of one that needs a key, or a server
                raise ConfigurationError(sentence) from error
            raise ConfigurationError(explain_build(own_error(error), self.plain_config(), self._args)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer, whose checkpoints are whole and load without executing code."""
        plugins = self.config_init[self.subcommand].get("trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        config = self.config_init[self.subcommand]
        given = config.get("trainer.callbacks") or []
        given = given if isinstance(given, list) else [given]
        guard_loader_processes()
        defaults = self.trainer_defaults["callbacks"]
        defaults = wanted(defaults, given, config.get("without") or (), config.trainer)
        has_logger = self.subcommand != "fit" or config.trainer.logger not in (False, [])
        config.trainer.callbacks = given = usable(given, has_logger)
        if self.subcommand == "predict":
            defaults.append(self._evaluation.writer)
        for folder in (each for each in (*given, *defaults) if isinstance(each, callbacks.RunFolder)):
            folder.continues, folder.name = self._continues, folder.name or experiment_name(config.config)
        self.trainer_defaults["callbacks"] = defaults
        try:
            trainer = super().instantiate_trainer(plugins=[*plugins, callbacks.SafeCheckpointIO()], **kwargs)
        except Exception as error:  # a number of devices that is none; two callbacks of one state_key
            sentence = explain_trainer(error, self.plain_config()["trainer"], self._args)
            is_unnamed = isinstance(error, TypeError | RuntimeError)  # of Lightning, which does not say whose they are
            raise ConfigurationError(f"trainer: {sentence}" if is_unnamed else sentence) from error
        keep_signals(trainer)
        return trainer

    def after_fit(self) -> None:
        """Reads the test set, once, at the epoch that a held-out part of the training set has chosen.

        Not after a signal that came too late to end the training: the run that is resumed does.
        """
        if stop_signals.received is not None:
            return
        savers = (saver for saver in self.trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint))
        chosen = next((saver.best_model_path for saver in savers if saver.monitor), "")
        if getattr(self.datamodule, "protocol", None) == "holdout" and chosen:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=chosen)


def _naming(option: str, words: str) -> str:
    """The words of an error of one sentence about an option, with its name, if they lack that."""
    return words if option in words or "--" in words or "\n" in words else f"{words} (--{option})"
