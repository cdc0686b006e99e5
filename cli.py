"""The command line: ``python cli.py {fit,validate,test,predict,compare}``, also installed as ``eigenscope``."""

import logging
import sys
import traceback
import warnings
from typing import Any, cast

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stub leaves it out

import callbacks  # importing a package makes its classes known by their short names
import datamodules  # noqa: F401
import eigenscope.nn
import eigenscope.optim  # noqa: F401
import lightning_modules  # noqa: F401
from eigenscope.precision import has_bf16
from eigenscope.study.arms import compare_main


class ConfigurationError(ValueError):
    """A class refused a value of the configuration."""


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the logs, and nowhere if there are none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves it, unless Lightning would put it into the working directory for want of a logger."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class EigenscopeCLI(LightningCLI):
    """LightningCLI in subclass mode; classes and image size flow from the data to the network."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [callbacks.ParameterRouting()]},
            parser_kwargs={
                "description": "Train and examine models while watching their spectra.",
                "epilog": "There is one more subcommand, compare: several configurations, several seeds, one table; "
                "see 'compare --help'.",
            },
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes a parser that takes no abbreviated options: a misspelt one is an error, not its nearest neighbour."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what the data knows to the network, ``net``, and guards every training against non-finite numbers."""
        parser.add_lightning_class_args(callbacks.FiniteGuard, "finite_guard")
        for name in ("num_classes", "image_size"):
            parser.link_arguments(f"data.{name}", f"model.init_args.net.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; ``main(args)`` is meant to be called from Python, so Lightning's warning against it is left out."""
        self.config = parser.parse_args(cast(list[str] | None, args))

    def before_instantiate_classes(self) -> None:
        """Replaces bf16 by fp32 where the device would only emulate it, and says so."""
        trainer = self.config[self.subcommand].trainer
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        device = {"auto": automatic, "gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}.get(trainer.accelerator)
        if trainer.precision == "bf16-mixed" and device is not None and not has_bf16(device):
            rank_zero_only(print)(f"bf16-mixed was asked for, but this {device} only emulates it: using 32-true.")
            trainer.precision = "32-true"

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer.

        Raises:
            ConfigurationError: a class refused its arguments; the message is the class's own.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            reason: BaseException = error
            while _is_from_jsonargparse(reason) and reason.__cause__ is not None:
                reason = reason.__cause__
            raise ConfigurationError(str(reason)) from error

    def after_fit(self) -> None:
        """Reads the test set, once, at the epoch that a held-out part of the training set has chosen."""
        checkpoints = self.trainer.checkpoint_callback
        chosen = getattr(checkpoints, "monitor", None) and getattr(checkpoints, "best_model_path", None)
        if getattr(self.datamodule, "protocol", None) == "holdout" and chosen:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=chosen)


def _is_from_jsonargparse(error: BaseException) -> bool:
    """Whether jsonargparse raised it, which wraps a class's own error once per level of nesting."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("jsonargparse")


def _is_from_setup(error: BaseException) -> bool:
    """Whether it was raised before the first step, while all parts of the run were looked over."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    before = {"_call_setup_hook", "restore_datamodule", "setup_optimizers", "setup_data", "_run_sanity_check"}
    before |= {"on_fit_start", "on_train_start"}
    return bool(names & before)


class _Parsed(Exception):
    """Carries the resolved configuration out of the constructor of :class:`_ParseOnly`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config


class _ParseOnly(EigenscopeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        raise _Parsed(yaml.safe_load(parser.dump(self.config, skip_unset=False))["fit"])


def resolve(args: list[str]) -> dict[str, Any]:
    """The full configuration that ``fit`` would run with these arguments, as plain values."""
    try:
        _ParseOnly(["fit", *args])
    except _Parsed as parsed:
        return parsed.config
    raise RuntimeError("the parser returned without a configuration")


def _quieten_lightning() -> None:
    """Leaves out what nobody at the command line can act on: advertisements, and Lightning's own deprecations."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡 Tip")


def main(args: list[str] | None = None) -> Any:
    """Runs the command line.

    Args:
        args: what would follow ``python cli.py``; None takes it from there.

    Returns:
        The LightningCLI object with ``trainer``, ``model`` and ``datamodule``; of ``compare``, the summaries.
    """
    _quieten_lightning()
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["compare"]:
        return compare_main(args[1:], resolve)
    return EigenscopeCLI(args)


def script() -> None:
    """The command as installed: what a person can mend is one sentence instead of a traceback."""
    try:
        main()
    except (ConfigurationError, callbacks.NonFiniteError) as error:
        sys.exit(f"error: {error}")
    except LinAlgError as error:
        sys.exit(f"error: {' '.join([str(error), *getattr(error, '__notes__', [])])}")  # the guard's note says where
    except ValueError as error:
        if not _is_from_setup(error):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    script()
