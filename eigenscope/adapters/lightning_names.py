"""Lightning's private names, and public ones that are not documented: loops, logged values, messages."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torchmetrics import Metric

from eigenscope.adapters import Library, MissingNameError, report_fallback
from eigenscope.files import claim_version

_LIGHTNING = Library("lightning")
_OWN_RESUME = "a run that is resumed within an epoch continues as Lightning resumes it, not bit for bit"
_LOGGED = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "add_dataloader_idx", "metric_attribute")
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


def logged_so_far(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """What is logged in the training epoch under way: how each value was logged, and the states of means of tensors."""
    found = {}
    for key, entry in logged_means(trainer).items():
        meta = entry.meta
        if entry.has_reset or not entry.update_called or meta.enable_graph or meta.sync.group is not None:
            continue
        how = {name: getattr(meta, name) for name in _LOGGED} | {"reduce_fx": meta.reduce_fx.__name__}
        how |= {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
        found[key] = {"how": how}
        if entry.is_tensor:
            found[key] |= {"states": dict(entry.metric_state), "count": entry.update_count}
    return found


def log_again(trainer: Trainer, pl_module: LightningModule, saved: Mapping[str, Any]) -> Iterator[tuple[Metric, str]]:
    """Logs what :func:`logged_so_far` returned, as Lightning would with the next batch only.

    Yields:
        The means of tensors, which are to be put back, with their keys.
    """
    results: Any = logged_means(trainer)
    try:
        # or the first batch, which Lightning takes for that of the epoch, would reset them
        _LIGHTNING.set(_LIGHTNING.get(trainer, "_logger_connector"), "_first_loop_iter", True)
    except MissingNameError as missing:
        report_fallback("means of tensors that were logged begin anew where a run is resumed within an epoch", missing)
        return
    for key, entry in saved.items() if results is not None and hasattr(results, "log") else ():
        how = entry["how"]
        states = entry.get("states")  # of a mean of tensors
        value = states["value"] if states else pl_module.get_submodule(how["metric_attribute"])
        results.log(**how, value=value, batch_size=1, sync_dist_fn=trainer.strategy.reduce)
        if states:
            yield results[key], key


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


def validation_progress(trainer: Trainer) -> Any:
    """The counts of validation batches, with ``total`` and ``current``; in a checkpoint ``VALIDATION_PROGRESS``.

    Returns:
        None, and a note on stderr, where Lightning keeps them elsewhere.
    """
    try:
        return _LIGHTNING.get(_LIGHTNING.get(trainer.fit_loop, "epoch_loop"), "val_loop").batch_progress
    except MissingNameError as missing:
        report_fallback("a run that was stopped within a validation goes on as Lightning resumes it", missing)
        return None


#: Where among a checkpoint's ``loops`` the counts of validation batches are.
VALIDATION_PROGRESS = "epoch_loop.val_loop.batch_progress"


def keep_signals(trainer: Trainer) -> None:
    """Keeps Lightning's own signal handlers out of a run.

    They wait for other ranks within a handler, and under SLURM save and requeue in the middle of a step. Where
    Lightning installs them elsewhere they are replaced later, and stderr says so.
    """
    try:
        _LIGHTNING.set(_LIGHTNING.get(trainer, "_signal_connector"), "register_signal_handlers", _nothing)
    except MissingNameError as missing:
        report_fallback("a signal that comes before the first step meets Lightning's own handlers", missing)


def _nothing() -> None:
    """Module level, so that a trainer can still be pickled."""


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

    def _dump_config(self) -> None:
        """Gives a network without arguments of its own a place for those that the data fills in."""
        super()._dump_config()  # type: ignore[misc]  # of Lightning, which calls this one
        model = getattr(self, "config_dump", {}).get("model") or {}
        net = model.get("init_args", {}).get("net")
        if isinstance(net, dict):
            net.setdefault("init_args", {})


def quieten() -> None:
    """Leaves out messages of Lightning that nobody can act on: advertisements, its notes to itself, and MLflow's."""
    for name in (
        "utilities.rank_zero",
        "trainer.connectors.checkpoint_connector",
        "trainer.connectors.callback_connector",
    ):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_for_people)
    logging.getLogger().addFilter(_is_for_people)
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)


@contextmanager
def own_experiment() -> Iterator[None]:
    """Ends an experiment of Weights & Biases that begins in the block: the next run of the process would log to it."""
    before = getattr(sys.modules.get("wandb"), "run", None)
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb: Any = sys.modules.get("wandb")
        if before is None and getattr(wandb, "run", None) is not None:
            wandb.finish(exit_code=int(failed))


def _is_for_people(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(
        (
            "💡 Tip",
            "`weights_only` was not set",
            "Trainer already configured with model summary",
            "Malformed experiment",  # of MLflow, that a folder of runs beside its own is none of its own
        )
    )


def ignore_moved_checkpoints() -> None:
    """Leaves out the warning that a checkpoint's callback saved elsewhere, for runs that save nothing."""
    warnings.filterwarnings("ignore", "The dirpath has changed")


def ignore_existing_checkpoints() -> None:
    """Leaves out the warning that the folder of checkpoints is not empty, for runs that are resumed in it."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")


def ignore_existing_logs() -> None:
    """Leaves out the warning that ``CSVLogger`` deletes a table of metrics, which is put back or was not there."""
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")


def known_columns(writer: Any) -> list[str] | None:
    """The columns that the writer of a ``CSVLogger`` believes its file to have, the very list.

    Returns:
        None, and a note on stderr, where Lightning keeps them elsewhere.
    """
    try:
        found: list[str] = _LIGHTNING.get(writer, "metrics_keys")
    except MissingNameError as missing:
        report_fallback("a resumed run's earlier rows are in metrics_before_resume.csv", missing)
        return None
    return found


def claim_versions(trainer: Trainer) -> None:
    """Gives loggers that write files below one folder, and were not given a version, one that no other run gets.

    Two processes that start together would find the same one free; two loggers of one trainer would not find the same.
    """
    waiting: dict[str, list[Any]] = {}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger) and "://" not in str(logger.root_dir):
            try:
                if _LIGHTNING.get(logger, "_version") is None:
                    waiting.setdefault(logger.root_dir, []).append(logger)
            except MissingNameError as missing:
                report_fallback("runs that start at the same moment may share a folder", missing)
    for root, loggers in waiting.items():
        version = claim_version(Path(root))
        for logger in loggers:
            _LIGHTNING.set(logger, "_version", version)


def ignore_absent_callbacks() -> None:
    """Ignores the warning of a resumed run that lacks callbacks of its checkpoint, which a line has named."""
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
