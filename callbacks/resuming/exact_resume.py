"""Exact resume: random states, metrics, loop counters and loader position in the checkpoint."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric

from eigenscope.adapters.lightning_averaging import make_exact
from eigenscope.adapters.lightning_names import (
    VALIDATION_PROGRESS,
    is_within_epoch,
    log_again,
    logged_so_far,
    metrics_so_far,
    restore_metrics,
    resume_loaders,
    validation_progress,
)
from eigenscope.adapters.torchmetrics_names import restore_metric
from eigenscope.checkpoints import TRAINED
from eigenscope.random_state import random_state, seed_streams, set_random_state


class ExactResume(Callback):
    """Saves and restores random states, the metrics of the epoch under way and the loader position, of each rank.

    The streams are those of Python, numpy, torch and the rank's CUDA device. Ranks begin with streams of their own, so
    that no two draw the same dropout; where a run is resumed with another number of ranks, streams are reseeded and the
    metrics of the epoch under way restart, which is printed.

    Where in an epoch a run was stopped is the trainer's own count of batches, and loaders that can are told to resume
    there: a sample depends on (seed, epoch, index) alone, so there is no state of workers to keep.
    :class:`~eigenscope.callbacks.ResumeCheckpoint` saves between two steps, where all this is exact. A checkpoint
    that is saved within a validation is of its start: the resumed run begins that validation again.

    A callback that averages weights, Lightning's ``StochasticWeightAveraging``, ``WeightAveraging``,
    ``EMAWeightAveraging`` or a subclass, is made to resume as exactly; there may be one.
    """

    affects_training = False

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._validation: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes weight averaging exact.

        Raises:
            ValueError: several callbacks average the weights.
        """
        make_exact(trainer, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives each rank streams of its own, or those it had at the end of an epoch."""
        restored = self._restored
        if restored is None:
            _seed_rank(trainer)
        elif len(restored["ranks"]) != trainer.world_size:
            pl_module.print(
                f"The checkpoint is of {len(restored['ranks'])} ranks, this run has {trainer.world_size}: random "
                "streams are reseeded, and the training metrics of the epoch under way restart."
            )
            _seed_rank(trainer, restored["step"])
            self._restored = restored | {"ranks": []}
        elif not restored["within_epoch"]:
            self._set_streams(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the metrics, which Lightning has cleared until here, and the place in the data."""
        resume_loaders(trainer)
        if self._restored is None:
            return
        restore_metrics(trainer, _moved(self._restored["figures"], pl_module.device))
        if self._restored["ranks"] and self._restored["within_epoch"]:
            self._set_streams(trainer)  # for those who look at them as the first batch starts
            rank = self._restored["ranks"][trainer.global_rank]
            _set_metrics(pl_module, rank["metrics"])
            logged = _moved(rank.get("logged", {}), pl_module.device)
            for mean, key in log_again(trainer, pl_module, logged):
                restore_metric(mean, logged[key]["states"], logged[key]["count"])
        else:
            self._restored = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restores streams within an epoch, after loaders have drawn from them once more to start their workers."""
        if self._restored is not None:
            self._set_streams(trainer)
            self._restored = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what a checkpoint within this validation is to hold; restores the streams of one that begins again."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        progress = validation_progress(trainer)
        if self._restored is not None:
            self._set_streams(trainer)
            self._restored = None
            if progress is not None:
                progress.total.reset_on_restart()
        self._validation = {
            "streams": random_state(pl_module.device),
            "metrics": set(_metrics(pl_module)),
            "progress": None if progress is None else progress.state_dict(),
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets it."""
        self._validation = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forgets it."""
        self._validation = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the streams and the metrics of all ranks."""
        mine = {
            "streams": random_state(pl_module.device),
            "metrics": _metrics(pl_module),
            "logged": logged_so_far(trainer) if is_within_epoch(trainer) else {},
        }
        if self._validation is not None:
            mine["streams"] = self._validation["streams"]
            mine["metrics"] = {
                name: mine["metrics"][name] for name in mine["metrics"] if name in self._validation["metrics"]
            }
            if self._validation["progress"] is not None:
                _begin_again(checkpoint["loops"]["fit_loop"], self._validation["progress"])
        ranks: list[Any] = [mine]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, _moved(mine, torch.device("cpu")))
        checkpoint["random_state"] = {
            "step": trainer.global_step,
            "within_epoch": is_within_epoch(trainer),
            "ranks": ranks,
            "figures": metrics_so_far(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps what was saved until the fit is under way; takes the weights themselves if averages were loaded."""
        if trainer.state.fn == "fit":
            self._restored = checkpoint.get("random_state")
            if TRAINED in checkpoint:
                pl_module.load_state_dict(checkpoint[TRAINED])

    def _set_streams(self, trainer: Trainer) -> None:
        if self._restored and self._restored["ranks"]:
            rank = self._restored["ranks"][trainer.global_rank]
            set_random_state(rank["streams"], trainer.strategy.root_device)


def _seed_rank(trainer: Trainer, step: int = 0) -> None:
    """Rank 0 of a new run keeps the stream that a single process has."""
    if trainer.global_rank or step:
        seed = int(trainer.strategy.broadcast(torch.initial_seed()))
        seed_streams(seed, trainer.global_rank, step)
    elif trainer.world_size > 1:
        trainer.strategy.broadcast(torch.initial_seed())


def _begin_again(loops: dict[str, Any], progress: dict[str, Any]) -> None:
    """Makes Lightning validate first when it resumes, as if the first batch had been begun and no more."""
    total = progress["total"]
    begun = {"ready": total["ready"] + 1, "started": total["started"] + 1}
    loops[VALIDATION_PROGRESS] = progress | {"total": total | begun}


def _metrics(pl_module: LightningModule) -> dict[str, Any]:
    """Every metric that has seen something, by its place in the module."""
    metrics = {name: part for name, part in pl_module.named_modules() if isinstance(part, Metric)}
    return {
        name: {"count": metric.update_count, "states": dict(metric.metric_state)}
        for name, metric in metrics.items()
        if metric.update_count
    }


def _set_metrics(pl_module: LightningModule, saved: dict[str, Any]) -> None:
    for name, values in saved.items():
        metric: Any = pl_module.get_submodule(name)
        restore_metric(metric, _moved(values["states"], pl_module.device), values["count"])


def _moved(tree: Any, device: torch.device) -> Any:
    """Copies of the tensors in nested containers on a device; anything else as it is."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device, copy=True)
    if isinstance(tree, dict):
        return {key: _moved(part, device) for key, part in tree.items()}
    return type(tree)(_moved(part, device) for part in tree) if isinstance(tree, list | tuple) else tree
