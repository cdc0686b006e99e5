"""Lightning's private names, and public ones that are not documented: loops, logged values, messages."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from eigenscope.adapters import Library, MissingNameError, report_fallback

_LIGHTNING = Library("lightning")
_OWN_RESUME = "a run that is resumed within an epoch continues as Lightning resumes it, not bit for bit"
_DICTIONARIES = ("callback", "logged")

#: Functions of Lightning in which the parts of a run are looked over, before the first step.
BEFORE_TRAINING = frozenset(
    {
        "before_fit",
        "prepare_data",
        "restore_datamodule",
        "setup_data",
        "setup_optimizers",
        "on_fit_start",
        "on_train_start",
        "_call_setup_hook",
        "_run_sanity_check",
    }
)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """A trainer's callbacks, the very list."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return found


def registered_strategy(name: str) -> type | None:
    """The class of a strategy that has a name, such as ``ddp``; None if it has none, or Lightning has no register."""
    try:
        register = _LIGHTNING.get("lightning.pytorch.strategies", "StrategyRegistry")
    except MissingNameError as missing:
        report_fallback("the strategy of a run is not compared with the one requested", missing)
        return None
    found: type | None = register[name]["strategy"] if name in register else None
    return found


def tag_prefix(board: TensorBoardLogger) -> str:
    """What a logger puts before each scalar's tag; nothing, and a note on stderr, where Lightning does not tell."""
    try:
        prefix = _LIGHTNING.get(board, "_prefix")
    except MissingNameError as missing:
        report_fallback("tags on TensorBoard's dashboard have no prefix of the logger", missing)
        return ""
    return f"{prefix}{board.LOGGER_JOIN_CHAR}" if prefix else ""


def logged_means(trainer: Trainer) -> Mapping[str, Any]:
    """The metrics in which Lightning collects what is logged in the training epoch under way.

    Returns:
        The live mapping; an empty one, and a note on stderr, where Lightning keeps it elsewhere.
    """
    try:
        found: Mapping[str, Any] = _LIGHTNING.get(trainer.fit_loop.epoch_loop, "_results")
    except MissingNameError as missing:
        report_fallback("means of logged values include steps that were skipped or computed again", missing)
        return {}
    return found


def step_counters(trainer: Trainer) -> list[Any]:
    """The trainer's counts of batches and of optimizer steps, each with ``state_dict`` and ``load_state_dict``.

    Returns:
        An empty list, and a note on stderr, where Lightning keeps them elsewhere.
    """
    try:
        loop = _LIGHTNING.get(trainer.fit_loop, "epoch_loop")
        batches = _LIGHTNING.get(loop, "batch_progress")
        return [batches, _LIGHTNING.get(_LIGHTNING.get(loop, "automatic_optimization"), "optim_progress")]
    except MissingNameError as missing:
        report_fallback("the checkpoint that FiniteGuard saves counts the step that was not finite", missing)
        return []


def is_within_epoch(trainer: Trainer) -> bool:
    """Whether a training epoch is under way; False, and a note on stderr, where Lightning does not tell."""
    try:
        epoch = _LIGHTNING.get(trainer.fit_loop, "epoch_progress").current
        return bool(epoch.ready != epoch.processed)
    except MissingNameError as missing:
        report_fallback(_OWN_RESUME, missing)
        return False


def metrics_so_far(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Copies of the dictionaries behind ``callback_metrics`` and ``logged_metrics``, without computing anything new.

    Returns:
        An empty dictionary, and a note on stderr, where Lightning keeps them elsewhere.
    """
    try:
        return {name: dict(_metrics(trainer, name)) for name in _DICTIONARIES}
    except MissingNameError as missing:
        report_fallback("a resumed run begins without the metrics of earlier epochs", missing)
        return {}


def restore_metrics(trainer: Trainer, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds what :func:`metrics_so_far` returned; nothing, and a note on stderr, where Lightning keeps it elsewhere."""
    try:
        for name, metrics in saved.items():
            _metrics(trainer, name).update(metrics)
    except MissingNameError as missing:
        report_fallback("a resumed run begins without the metrics of earlier epochs", missing)


def _metrics(trainer: Trainer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = _LIGHTNING.get(_LIGHTNING.get(trainer, "_logger_connector"), f"_{name}_metrics")
    return found


def resume_loaders(trainer: Trainer) -> bool:
    """Starts the loaders of a resumed fit at the batch that comes next.

    Lightning may have started them before it knew (to count the steps that a schedule has), and workers had begun. Of
    a checkpoint that was saved at the start of a batch it believes that the batch was trained but not counted as
    logged, and that it was made ready once more.

    Returns:
        False, and a note on stderr, where a name is gone: Lightning then resumes in its own way.
    """
    fit = trainer.fit_loop
    try:
        if not _LIGHTNING.get(fit, "is_resuming"):
            return True
        loop, epoch = _LIGHTNING.get(fit, "epoch_loop"), _LIGHTNING.get(fit, "epoch_progress").current.processed
        combined, fetcher = _LIGHTNING.get(fit, "_combined_loader"), _LIGHTNING.get(fit, "_data_fetcher")
        batches, should_accumulate = _LIGHTNING.get(loop, "batch_progress"), _LIGHTNING.get(loop, "_should_accumulate")
        stepped = _LIGHTNING.get(loop, "_batches_that_stepped")
        restarting = _LIGHTNING.get(fit, "restarting"), _LIGHTNING.get(loop, "restarting")
    except MissingNameError as missing:
        report_fallback(_OWN_RESUME, missing)
        return False
    for loader in combined.flattened if combined is not None else []:
        if hasattr(loader, "load_state_dict"):
            loader.load_state_dict({"epoch": epoch, "batches": batches.current.processed if restarting[0] else 0})
    iter(fetcher)
    if restarting[1] and batches.total.ready == batches.total.started + 1:
        if batches.current.processed == 0:
            loop.restarting = False  # an epoch that begins
        elif not should_accumulate():
            _LIGHTNING.set(loop, "_batches_that_stepped", stepped - 1)
        batches.total.ready = batches.total.started
    return True


def given_hyperparameters() -> dict[str, Any] | None:
    """The arguments that the command line gives the module under construction; None from Python.

    None too, and a note on stderr, where Lightning keeps them elsewhere.
    """
    try:
        given = _LIGHTNING.get("lightning.pytorch.core.mixins.hparams_mixin", "_given_hyperparameters")
    except MissingNameError as missing:
        report_fallback("checkpoints hold no hyperparameters of the module", missing)
        return None
    found: dict[str, Any] | None = given.get()
    return found


class GivenConfiguration:
    """Mixin of a ``LightningCLI`` whose configuration stays as given: a checkpoint's hyperparameters do not win.

    Where Lightning reads them elsewhere they do, and stderr says so.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        try:
            _LIGHTNING.get(cls.__mro__[cls.__mro__.index(GivenConfiguration) + 1], "_parse_ckpt_path")
        except MissingNameError as missing:
            report_fallback("hyperparameters in a checkpoint may take the place of the configuration's", missing)

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration alone."""


def quieten() -> None:
    """Leaves out messages of Lightning that nobody can act on: advertisements, and its notes to itself."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_for_people)
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)


def _is_for_people(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡 Tip", "`weights_only` was not set"))


def ignore_moved_checkpoints() -> None:
    """Leaves out the warning that a checkpoint's callback saved elsewhere, for runs that save nothing."""
    warnings.filterwarnings("ignore", "The dirpath has changed")


def ignore_existing_checkpoints() -> None:
    """Leaves out the warning that the folder of checkpoints is not empty, for runs that are resumed in it."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")


def ignore_absent_callbacks() -> None:
    """Ignores the warning of a resumed run that lacks callbacks of its checkpoint, which a line has named."""
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
