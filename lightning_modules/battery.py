"""Lightning module of batteries: trains many small autoencoders at once, each on its own mixture of noise."""

import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from eigenscope.charts import Chart, present, train_and_val
from eigenscope.lightning_modules.base import EvaluatedModule, Stage
from eigenscope.lightning_modules.metrics import CrossErrors, MeanLoss
from eigenscope.nn import BatteryArray, cross_evaluate
from eigenscope.noise import NOISE_TYPES, battery_mixtures, noise_ids, pick_from_mixtures, stream_key
from eigenscope.noise.mixtures import MixtureKind
from eigenscope.protocols import LossTransform

_STAGES = ("val", "test")
_KINDS: tuple[MixtureKind, ...] = ("singles", "pairs", "quads", "all")
Batch = tuple[Tensor, Tensor]


class BatteryModule(EvaluatedModule):
    """Trains the batteries of an array, each on images of its own noise types, on batches of images and their types.

    In every step each battery takes ``images_per_battery`` images of its mixture from the batch that all share, drawn
    anew from (run seed, epoch, batch). The loss is the sum of their mean squared errors, so each is trained as if
    it were alone, by any optimizer that works element by element, such as Adam. A battery of whose mixture a batch has
    too few images takes what there is; one of whose it has none has loss zero in that step, which is not counted in
    its ``steps`` (though the optimizer's momentum, if it has any, still acts). Several ranks choose together from the
    batch over all of them, and each works on what it holds of the choice: the step is that of one process, and ranks
    beyond ``images_per_battery`` save no time.

    Logs once an epoch ``train/loss`` and ``train/mse``, both the mean over batteries and steps of their losses;
    ``{val,test}/mse``, the mean over batteries of the error on their own mixture, its types in equal parts; and
    ``{val,test}_mse/<type>``, the error of the battery that is best at a type. After validation ``cross_scores`` holds
    the errors of all batteries at all types.

    A callback may append a :data:`~eigenscope.protocols.LossTransform` to ``loss_transforms``: it sees the mean of the
    losses of the batteries that had images and their points M, and what it adds to that mean each battery feels as if
    alone.

    Args:
        net: the batteries.
        mixtures: kinds of mixtures, in turn, see :func:`eigenscope.noise.battery_mixtures`.
        types: of noise that are mixed, or ``all``.
        images_per_battery: in a step, over all ranks, at most the images of the batch.
        mixture_seed: of the mixtures, which do not depend on the seed of the run.
        *optimization, **more: ``optimizer``, ``lr_scheduler`` and ``lr_interval``, see BaseModule.

    Raises:
        ValueError: an argument is out of range; or, in setup, the labels of the data are not the noise types, types
            are mixed that the data have not, or the trainer clips the norm of the gradient, which all batteries share.
    """

    net: BatteryArray
    _steps: Tensor
    _members: Tensor
    _fed: Tensor

    def __init__(
        self,
        net: BatteryArray,
        *optimization: Any,
        mixtures: Sequence[MixtureKind] = _KINDS,
        types: Sequence[str] | Literal["all"] = "all",
        images_per_battery: int = 1,
        mixture_seed: int = 0,
        **more: Any,
    ) -> None:
        super().__init__(net, *optimization, **more)
        if images_per_battery < 1:
            raise ValueError(f"images_per_battery must be at least 1, got {images_per_battery}")
        if isinstance(types, str) and types != "all":
            raise ValueError(f"types must be 'all' or a list of names, got {types!r}")
        ids = noise_ids(NOISE_TYPES if types == "all" else types)
        chosen = battery_mixtures(net.num_batteries, mixtures, mixture_seed, ids)
        self.images_per_battery = images_per_battery
        self.mixtures = tuple(tuple(NOISE_TYPES[kind] for kind in mixture) for mixture in chosen)
        self.label_names = NOISE_TYPES
        self.point_set_shapes = net.point_set_shapes
        self.loss_transforms: list[LossTransform] = []
        self.cross_scores: Tensor | None = None
        members = torch.tensor([[kind in mixture for kind in range(len(NOISE_TYPES))] for mixture in chosen])
        self.register_buffer("_members", members, persistent=False)
        self.register_buffer(
            "_fed", torch.zeros(len(chosen), dtype=torch.bool), persistent=False
        )  # since the last step
        self.register_buffer("_steps", torch.zeros(len(chosen), dtype=torch.int64))
        self.train_means = nn.ModuleDict({name: MeanLoss() for name in ("loss", "mse")})
        self.cross_errors = nn.ModuleDict({stage: CrossErrors(len(chosen), len(NOISE_TYPES)) for stage in _STAGES})
        self._seed = 0
        self._places: Tensor | None = None  # in this rank's batch, of the latest step

    @property
    def protocol(self) -> str:
        """What validation scores are taken over, for the scoreboard: others over other mixtures are not comparable."""
        digest = zlib.crc32(repr(self.mixtures).encode())
        return f"{len(self.mixtures)} batteries, each on its own mixture ({digest:08x})"

    @property
    def batteries(self) -> BatteryArray:
        """The K batteries."""
        return self.net

    @property
    def steps(self) -> Tensor:
        """Optimizer steps that each has had images for, (K,) int64."""
        return self._steps

    def setup(self, stage: str) -> None:
        """Takes the run's seed; checks the data and, before a fit, that nothing couples the batteries."""
        self._seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))
        data = getattr(self.trainer, "datamodule", None)
        names = tuple(getattr(data, "label_names", NOISE_TYPES))
        if names != NOISE_TYPES:
            raise ValueError(f"BatteryModule needs data whose labels are the noise types, got {', '.join(names)}")
        if stage != "fit":
            return
        mixed = {name for mixture in self.mixtures for name in mixture}
        there = [NOISE_TYPES[kind] for kind in getattr(data, "types", range(len(NOISE_TYPES)))]
        if missing := sorted(mixed - set(there)):
            raise ValueError(
                f"types of BatteryModule must be among those of the data, {', '.join(there)}; not {missing}"
            )
        clip, algorithm = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        if clip and algorithm != "value":
            raise ValueError(
                f"trainer.gradient_clip_val must be null, or gradient_clip_algorithm 'value', got {clip} by norm: "
                "the norm is over all batteries, which it would couple"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Every battery's reconstructions (K, B, 3, H, W) of images (B, 3, H, W)."""
        reconstructions: Tensor = self.net(images)[0]
        return reconstructions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the batteries' losses, with the loss terms of callbacks."""
        images, labels = batch
        places, fitting, taken = self._pick(labels, batch_idx)
        self._places = places
        own = images[places]
        reconstructions, code = self.net(own)
        squares = (reconstructions.to(torch.promote_types(reconstructions.dtype, torch.float32)) - own).square()
        losses = (squares.mean((2, 3, 4)) * fitting).sum(1) / taken.clamp(min=1)
        losses = losses * self.trainer.world_size  # DDP takes the mean over ranks, of which each has a part of the sum
        fed, here = taken > 0, fitting.any(1)
        self._fed |= fed
        for name in self.train_means:
            mean = losses.sum() / fed.sum().clamp(min=1)
            self.log_mean(f"train/{name}", self.train_means[name], mean, int(fed.sum()))
        loss: Tensor = losses.sum()
        if self.loss_transforms:
            count = fed.sum().clamp(min=1)
            point_sets = {name: points[here if here.any() else ~here] for name, points in code.point_sets.items()}
            loss = loss / count
            for transform in self.loss_transforms:
                loss = transform(loss, point_sets)
            loss = loss * count
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Counts the step for those that had images."""
        self._steps += self._fed
        self._fed.zero_()

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics and keeps the matrix."""
        errors = self._log_errors("val")
        if not self.trainer.sanity_checking:
            self.cross_scores = errors

    def on_test_epoch_end(self) -> None:
        """Logs the metrics."""
        self._log_errors("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the matrix, which a resumed run has none of before its next validation."""
        checkpoint["cross_scores"] = self.cross_scores

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it over."""
        self.cross_scores = checkpoint.get("cross_scores")

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Training beside validation, and the error of the battery that is best at each type."""
        best = [Chart("By label", f"{name}: mean squared error", (f"val_mse/{name}",)) for name in self.label_names]
        return present([train_and_val("mean squared error", "mse"), *best], logged)

    def trace(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """The largest magnitudes in the tensors of the latest step, in the order in which they are computed.

        Each is (B + K,): first of every image of the batch, then of every battery.
        """
        images, _ = batch
        yield "target images", _largest(images, before=0, after=len(self.mixtures))
        if self._places is None:
            return
        own = images[self._places % len(images)]
        for name, tensor in self.net.trace(own):
            yield name, _largest(tensor, before=len(images), after=0)

    def describe(self, batch: Batch, sample: int) -> str:
        """The noise type of an image; or a battery and its mixture, see :meth:`trace`."""
        labels = batch[1]
        if sample < len(labels):
            return NOISE_TYPES[int(labels[sample])]
        battery = sample - len(labels)
        return f"battery {battery} ({' + '.join(self.mixtures[battery])})"

    def _pick(self, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """What each battery takes of this rank's batch.

        Returns:
            Places (K, b') int64, whether each holds an image that it takes, (K, b') bool, and how many it takes on all
            ranks together, (K,) int64.
        """
        ranks = self.trainer.world_size
        if ranks > 1:  # rank r holds every ranks-th image
            labels = cast(Tensor, self.all_gather(labels)).T.flatten()
        key = stream_key(self._seed, self.current_epoch, batch_idx, 0)
        places, fitting = pick_from_mixtures(labels, self._members, self.images_per_battery, key)
        taken = fitting.sum(1)
        if ranks > 1:
            fitting &= places % ranks == self.global_rank
            most = max(1, int(fitting.sum(1).max()))
            fitting, order = fitting.to(torch.uint8).sort(dim=1, descending=True, stable=True)
            fitting, places = fitting[:, :most].bool(), places.gather(1, order[:, :most]) // ranks
        return places, fitting, taken

    def evaluate(self, stage: Stage, batch: Batch) -> None:
        """Updates every battery's error on every type."""
        errors = cross_evaluate(self.net, *batch, len(NOISE_TYPES))
        cast(CrossErrors, self.cross_errors[stage]).update(errors, batch[1])

    def _log_errors(self, stage: str) -> Tensor:
        """Logs the metrics of the matrix of errors (K, T), and returns it."""
        metric = cast(CrossErrors, self.cross_errors[stage])
        errors, seen = metric.compute()
        metric.reset()
        own = self._members & seen
        served = own.any(1)
        means = torch.where(own, errors, 0).sum(1) / own.sum(1)
        best = errors.where(errors.isfinite(), torch.inf).amin(0)
        figures = {f"{stage}/mse": means[served].mean()}
        figures |= {f"{stage}_mse/{NOISE_TYPES[kind]}": best[kind] for kind in seen.nonzero()[:, 0].tolist()}
        self.log_dict({name: value.float() for name, value in figures.items()}, sync_dist=True)
        return errors


def _largest(tensor: Tensor, before: int, after: int) -> Tensor:
    """The largest magnitude of each entry of the first dimension, between zeros."""
    return F.pad(tensor.flatten(1).abs().amax(1), (before, after))
