"""Identity of a run for scoreboard, table and HPARAMS: its label, its settings, what its score is taken on."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
)

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.callbacks.reporting.run_metadata import RunMetadataCallback, data_fingerprint, hyperparameters
from eigenscope.results.settings import flat_settings, setting_text

_WATCHING = (Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar, ThroughputMonitor)

_LOADING = ("batch_size", "num_workers", "pin_memory", "persistent_workers", "cache_dir")


def only_watches(kind: Any) -> bool:
    """Whether a callback's class leaves training as it is, as far as that is known."""
    said = getattr(kind, "affects_training", None)
    return said is False or (said is None and isinstance(kind, type) and issubclass(kind, _WATCHING))


def experiment_name(trainer: Trainer, pl_module: LightningModule) -> str:
    """What the experiment is called: as its logger says, or like its module's class."""
    return str(trainer.logger.name if trainer.logger is not None else type(pl_module).__name__)


def run_label(trainer: Trainer) -> tuple[str, ...]:
    """What the run has otherwise than its configuration file; empty if it was not started with one."""
    label = (_configuration(trainer) or {}).get("label") or ()
    return (label,) if isinstance(label, str) else tuple(label)


def run_settings(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The settings that the run's result depends on, see :func:`~eigenscope.results.settings.flat_settings`.

    From Python, where there is no configuration, the hyperparameters that module and data module have saved.
    """
    watching = {type(callback).__name__ for callback in callbacks_of(trainer) if only_watches(type(callback))}
    configuration = _configuration(trainer)
    if configuration is None:
        saved = hyperparameters(pl_module, getattr(trainer, "datamodule", None))
        configuration = {part: {k: v for k, v in each.items() if k != "class"} for part, each in saved.items()}
    return flat_settings(configuration, watching)


def run_data(trainer: Trainer) -> str:
    """What the run was trained and validated on: the data module, and the digests of its sets or else its arguments."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        return ""
    fingerprint = data_fingerprint(trainer)
    known = {name: fingerprint[name] for name in ("train", "val") if name in fingerprint}
    if not known:
        given = (_configuration(trainer) or {}).get("data") or {}
        arguments = given.get("init_args") or {}
        known = {name: setting_text(value) for name, value in arguments.items() if name not in _LOADING}
    return ", ".join([type(data).__name__, *(f"{name} {content}" for name, content in known.items())])


def validated_part(trainer: Trainer) -> str:
    """Which part of the validation set the score is of; empty if it is the whole."""
    overfit: float = getattr(trainer, "overfit_batches", 0)
    found = "" if not overfit else f"overfit to {overfit} batches"
    loaders: Any = trainer.val_dataloaders or []
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    try:
        whole: float = sum(len(loader) for loader in loaders)
    except TypeError:  # a stream without an end
        whole = float("inf")
    used = sum(trainer.num_val_batches)
    if used < whole:
        of = "" if whole == float("inf") else f" of {whole}"
        size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        found = ", ".join(filter(None, [found, f"{used}{of} batches" + (f" of {size}" if size else "")]))
    return found


def _configuration(trainer: Trainer) -> dict[str, Any] | None:
    cards = (callback for callback in callbacks_of(trainer) if isinstance(callback, RunMetadataCallback))
    return next((card.configuration for card in cards), None)
