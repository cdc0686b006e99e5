"""Heavy-tailed noise data module: an endless stream of noise images of sixteen types."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from eigenscope.adapters.lightning_names import callbacks_of
from eigenscope.data import NoiseDataset
from eigenscope.datamodules.curriculum_pacing import CurriculumPacing
from eigenscope.datamodules.loaders import Batch, check_loading, fingerprint, make_loader, run_seed
from eigenscope.noise import NOISE_TYPES, Curriculum, noise_ids, stream_key

_HELD_OUT = {"val": stream_key(1), "test": stream_key(2)}  # the same sets in every run, whatever its seed


class HeavyTailedNoiseDataModule(LightningDataModule):
    """Heavy-tailed noise: batches of images (B, 3, s, s) float32 with the ids of their types (B,) int64.

    Every image is a function of (seed, epoch, index), the same for any number of workers and ranks. The training
    images of an epoch hold the types in equal parts, in random order, and are new in every epoch; the validation and
    test sets are fixed for each type, the same in every run. With a curriculum, training and validation see the
    unlocked types, in equal parts, and the sizes stay as they are; the best score restarts at each unlock, in
    ``ModelCheckpoint``, ``EarlyStopping``, ``ReduceLROnPlateau``, ``EpochTable`` and ``Scoreboard``, because an error
    over more types is not comparable. Tests, and validation outside a fit, see all types.

    Args:
        types: names, see :data:`eigenscope.noise.NOISE_TYPES`, or ``all``.
        image_size: side in pixels.
        samples_per_epoch: training images.
        val_samples_per_type: validation images of each type, and as many for the test, once all are unlocked.
        clamp: bounds the values as reported, see :func:`eigenscope.noise.draw_noise`; None leaves the tails.
        curriculum: which types when; None is all from the start.
        batch_size: images per step over all ranks together.
        num_workers: loader processes per rank; ``auto`` is the cores of this rank, at most 8.

    Raises:
        ValueError: an argument is out of range, or a type is unknown; the message names it.
    """

    label_names = NOISE_TYPES
    num_classes = len(NOISE_TYPES)

    def __init__(
        self,
        types: Sequence[str] | Literal["all"] = "all",
        image_size: int = 64,
        samples_per_epoch: int = 16_384,
        val_samples_per_type: int = 32,
        clamp: float | None = None,
        curriculum: Curriculum | None = None,
        batch_size: int = 64,
        num_workers: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers)
        if isinstance(types, str) and types != "all":
            raise ValueError(f"types must be 'all' or a list of names, got {types!r}")
        self.types = noise_ids(NOISE_TYPES if types == "all" else types)
        for name, value, least in (
            ("types", len(self.types), 1),
            ("image_size", image_size, 2),
            ("samples_per_epoch", samples_per_epoch, batch_size),
            ("val_samples_per_type", val_samples_per_type, 1),
        ):
            if value < least:
                size = "batch_size, " if name == "samples_per_epoch" else ""
                raise ValueError(f"{name} must be at least {size}{least}, got {value}")
        if len(set(self.types)) < len(self.types):
            raise ValueError(f"types must name every type once, got {list(types)}")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"clamp must be above 0 or None, got {clamp}")
        if curriculum is not None and set(curriculum.types) != set(self.types):
            differ = sorted(NOISE_TYPES[kind] for kind in set(curriculum.types) ^ set(self.types))
            raise ValueError(f"types and the tiers of the curriculum must hold the same, they differ in {differ}")
        self.image_size = image_size
        self.samples_per_epoch = samples_per_epoch
        self.held_out_size = val_samples_per_type * len(self.types)
        self.clamp = clamp
        self.curriculum = curriculum
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pacing = None if curriculum is None else CurriculumPacing(curriculum)
        self._fits = False
        self._seed = 0

    def setup(self, stage: str) -> None:
        """Takes the run's seed, and joins a fit to pace the curriculum."""
        self._check_precision()
        self._seed = run_seed(self.trainer)
        self._fits = stage == "fit"
        if self._fits and self.pacing is not None and self.trainer is not None:
            self.pacing.start()
            self._leave()
            callbacks_of(self.trainer).insert(0, self.pacing)  # before checkpoints are saved

    def _check_precision(self) -> None:
        """Refuses float16 for numbers beyond its range."""
        if self.trainer is None or self.trainer.precision != "16-true" or NOISE_TYPES.index("cauchy") not in self.types:
            return
        largest = torch.finfo(torch.float16).max
        if self.clamp is None or self.clamp > largest:
            raise ValueError(
                f"--trainer.precision must be 32-true, bf16-mixed, 16-mixed or bf16-true for the noise type 'cauchy' "
                f"with clamp {self.clamp}, got 16-true: its numbers reach 1.4e9, and float16 ends at {largest:.0f}"
            )

    def teardown(self, stage: str) -> None:
        """Leaves the fit."""
        self._leave()

    def on_exception(self, exception: BaseException) -> None:
        """Leaves the fit."""
        self._leave()

    def _leave(self) -> None:
        if self.trainer is not None and self.pacing in callbacks_of(self.trainer):
            callbacks_of(self.trainer).remove(self.pacing)

    @property
    def protocol(self) -> str:
        """What validation scores are taken over, for the scoreboard: scores over fewer types are not comparable."""
        if self.curriculum is None or not self._fits or self.trainer is None:
            return f"{len(self.types)} types"
        return f"{len(self.curriculum.types_at(max(0, self.trainer.current_epoch - 1)))} types"

    def fingerprint(self) -> dict[str, str]:
        """Of each set's parameters and its first image of each type; the run's seed and progress do not enter."""
        sets = {"train": (self.samples_per_epoch, 0)}
        sets |= {name: (self.held_out_size, seed) for name, seed in _HELD_OUT.items()}
        curriculum = self.curriculum
        pace: list[Any] = [] if curriculum is None else [curriculum.tiers, curriculum.patience, curriculum.monitor]
        if curriculum is not None and curriculum.patience is None:
            pace.append(curriculum.unlocked_at.tolist())
        found = {}
        for name, (size, seed) in sets.items():
            fixed = name in _HELD_OUT
            data = NoiseDataset(size, self.types, self.image_size, seed=seed, fixed=fixed, clamp=self.clamp)
            given = [self.image_size, self.clamp, pace if name != "test" else []]
            found[name] = fingerprint(size, given, *data.__getitems__(range(len(self.types))))
        return found

    def train_dataloader(self) -> DataLoader[Batch]:
        """New images in every epoch, in random order."""
        return self._loader("train", self.samples_per_epoch, self._seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The fixed validation images of the unlocked types."""
        return self._loader("val", self.held_out_size, _HELD_OUT["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        """The fixed test images of all types."""
        return self._loader("test", self.held_out_size, _HELD_OUT["test"])

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The curriculum's, if there is one."""
        return {} if self.pacing is None else self.pacing.progress()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the curriculum was."""
        if self.pacing is not None and self._fits:
            self.pacing.go_on(state_dict)

    def _loader(self, name: str, size: int, seed: int) -> DataLoader[Batch]:
        train = name == "train"
        types = self.curriculum if self.curriculum is not None and self._fits and name != "test" else self.types
        return make_loader(
            self.trainer,
            NoiseDataset(size, types, self.image_size, seed=seed, fixed=not train, clamp=self.clamp),
            name,
            size=size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            train=train,
            seed=seed,
        )
