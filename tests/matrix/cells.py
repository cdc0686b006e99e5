"""A cell of the matrix: a shipped experiment at a tiny size, under one choice of everything a person may choose.

Ranks load this file by its path, so it imports nothing of the tests.
"""

import contextlib
import hashlib
import io
import os
import tempfile
import traceback
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torchvision.transforms.v2.functional import to_pil_image

from eigenscope import cli
from eigenscope.callbacks import TrainingInterrupted
from eigenscope.cli import dispatch, lightning_cli
from eigenscope.nn import BatteryArray, BatteryEntry, save_batteries

CONFIGS = Path(__file__).parents[2] / "configs"
BATCH = 4
EPOCH = 2  # batches
SPIKE_STEPS = 52  # the place of the spike is part of the configuration
IMAGES = {"classes": 5, "train": 8, "test": 2}

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
LOGGERS = ("tensorboard", "csv", "none")
AVERAGES = ("none", "ema", "swa")

NET, DATA, TRAINER = "--model.init_args.net.init_args", "--data.init_args", "--trainer"
_LOGGERS = {
    "tensorboard": [],
    "csv": [f"{TRAINER}.logger=CSVLogger", f"{TRAINER}.logger.init_args.save_dir=runs"],
    "none": [f"{TRAINER}.logger=false"],
}
_AVERAGES = {
    "none": [],
    "ema": [f"{TRAINER}.callbacks+=EMAWeightAveraging", f"{TRAINER}.callbacks.init_args.decay=0.5"],
    "swa": [
        f"{TRAINER}.callbacks+=StochasticWeightAveraging",
        f"{TRAINER}.callbacks.init_args.swa_lrs=1e-3",
        f"{TRAINER}.callbacks.init_args.swa_epoch_start=1",
    ],
}


@dataclass(frozen=True)
class Cell:
    """What is chosen.

    Attributes:
        experiment: files below ``configs`` without their ending, an overlay after a plus sign.
        precision: as Lightning names it.
        ranks: 1 or 2 processes.
        workers: loader processes of each.
        logger: one of LOGGERS.
        accumulate: batches a step.
        averaging: of the weights, one of AVERAGES.
    """

    experiment: str
    precision: str = "32-true"
    ranks: int = 1
    workers: int = 0
    logger: str = "tensorboard"
    accumulate: int = 1
    averaging: str = "none"

    @property
    def reference(self) -> "Cell":
        """The cell whose metrics it must have, to the rounding of its precision: one process in single precision."""
        return replace(self, precision="32-true", ranks=1, workers=0, logger="tensorboard")

    def __str__(self) -> str:
        """One line."""
        words = [self.experiment, self.precision, f"{self.ranks} ranks", f"{self.workers} workers", self.logger]
        return ", ".join([*words, f"accumulate {self.accumulate}", f"averaging {self.averaging}"])


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: ``metrics`` if it ran, ``sentence`` if it was refused in one, else ``fault``.

    Attributes:
        metrics: logged ones, by name.
        used: the precision it ran at.
        weights: digest of the weights at the end.
        steps: optimizer steps.
        saved: whether there is a checkpoint to resume from.
        sentence: what was said after ``error: ``.
        fault: what left the program with a traceback.
    """

    metrics: dict[str, float] | None = None
    used: str = ""
    weights: str = ""
    steps: int = 0
    saved: bool = False
    sentence: str = ""
    fault: str = ""


def files(experiment: str) -> list[Path]:
    """The configuration files of an experiment."""
    return [CONFIGS / f"{name}.yaml" for name in experiment.split("+")]


def arguments(cell: Cell) -> list[str]:
    """The command line of a cell, in a folder with ``tree`` and ``batteries.safetensors``."""
    paths = files(cell.experiment)
    text = paths[0].read_text()
    data = yaml.safe_load(text)["data"]["class_path"]
    args = [f"--config={path}" for path in paths]
    args += [f"{TRAINER}.accelerator=cpu", f"{TRAINER}.max_epochs=1", f"{TRAINER}.precision={cell.precision}"]
    args += [f"{TRAINER}.enable_progress_bar=false", f"{TRAINER}.enable_model_summary=false"]
    args += [f"{TRAINER}.log_every_n_steps=1", f"{TRAINER}.accumulate_grad_batches={cell.accumulate}"]
    args += [f"{TRAINER}.devices={cell.ranks}", *([f"{TRAINER}.strategy=ddp"] if cell.ranks > 1 else [])]
    args += _LOGGERS[cell.logger] + _AVERAGES[cell.averaging]
    if data == "GradientSpikeDataModule":
        sides = ("rows=16", "columns=8")
        args += [f"{DATA}.steps={SPIKE_STEPS * cell.accumulate}"]
        args += [f"{of}.{side}" for of in (NET, DATA) for side in sides]
    else:
        args += [f"{DATA}.batch_size={BATCH}", f"{DATA}.num_workers={cell.workers}"]
        args += [f"{TRAINER}.limit_train_batches={EPOCH}", f"{TRAINER}.limit_val_batches=1"]
    if data == "CIFAR100DataModule":
        args += [f"{DATA}.source=folder", f"{DATA}.root=tree"]
    elif data == "SyntheticImagesDataModule":
        args += [f"{DATA}.train_size=100", f"{DATA}.test_size=100"]
    elif data == "HeavyTailedNoiseDataModule":
        args += [f"{DATA}.image_size=32"]
    if "class_path: DeiT" in text:  # with dropout two ranks draw other numbers than one
        args += [f"{NET}.width=48", f"{NET}.dropout=0.0"]
    elif "class_path: BatteryArray" in text:
        args += [f"{NET}.num_batteries=16"]
    elif "hidden: " in text:
        args += [f"{NET}.hidden={96 if 'decoder' in text else 32}"]  # of which a decoder's point set has rows of 16
    if "class_path: ImplantedVAE" in text:
        args += [f"{NET}.container=batteries.safetensors"]
    return args


def run(cell: Cell, folder: str, *watching: Callback) -> Outcome:
    """Trains a cell on this rank, in a new folder below one that :func:`prepare` has made, with further callbacks."""
    before, has_bf16 = os.getcwd(), lightning_cli.has_bf16
    make = lightning_cli.EigenscopeCLI.instantiate_trainer

    def with_callbacks(self: Any, **options: Any) -> Trainer:
        trainer = make(self, **options)
        trainer.callbacks[:0] = watching
        return trainer

    own = Path(folder) / hashlib.sha256(repr(cell).encode()).hexdigest()[:16]
    own.mkdir(exist_ok=True)
    said = io.StringIO()
    lightning_cli.EigenscopeCLI.instantiate_trainer = with_callbacks
    lightning_cli.has_bf16 = lambda device: True  # emulated where the processor has none: the numbers are the same
    try:
        for name in ("tree", "batteries.safetensors"):
            with contextlib.suppress(FileExistsError):
                (own / name).symlink_to(Path(folder) / name)
        os.chdir(own)
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            return _ran(cli.main(["fit", *arguments(cell)]))
    except SystemExit:
        (line,) = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        return Outcome(sentence=line.removeprefix("error: "))
    except TrainingInterrupted:  # whoever sends a signal means all cells
        raise
    except Exception as error:
        inner = error.__traceback__.tb_next if error.__traceback__ is not None else None
        return _refused(error.with_traceback(inner))  # without this frame, as of the command
    finally:
        lightning_cli.has_bf16 = has_bf16
        lightning_cli.EigenscopeCLI.instantiate_trainer = make
        os.chdir(before)


def _ran(run: Any) -> Outcome:
    weights = hashlib.sha256()
    for parameter in run.model.parameters():
        weights.update(parameter.detach().float().numpy().tobytes())
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    saved = any(Path().rglob("last.ckpt"))
    return Outcome(metrics, str(run.trainer.precision), weights.hexdigest(), run.trainer.global_step, saved)


def _refused(error: Exception) -> Outcome:
    """What the command as installed makes of an error: one sentence, or a traceback."""

    def again(*_: Any) -> None:
        raise error

    names = ("main", "end_with_launcher", "leave_to_main_thread")  # the last two are of a process of its own
    before = {name: getattr(dispatch, name) for name in names}
    for name in names:
        setattr(dispatch, name, again if name == "main" else lambda: None)
    try:
        dispatch.script()
    except SystemExit as stopped:
        sentence = str(stopped.code)
        if sentence.startswith("error: ") and "\n" not in sentence:
            return Outcome(sentence=sentence.removeprefix("error: "))
        return Outcome(fault=sentence)
    except Exception:
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(fault=f"{words[:300]} ({Path(place.filename).name}, line {place.lineno})")
    finally:
        for name, value in before.items():
            setattr(dispatch, name, value)
    return Outcome(fault="the error was swallowed")


def run_on_rank(cell: dict[str, Any], folder: str) -> dict[str, Any]:
    """:func:`run`, from and to plain values, as ranks take them."""
    return asdict(run(Cell(**cell), folder))


def prepare(folder: Path) -> Path:
    """Writes what cells read: a tree of images, and trained batteries."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in range(IMAGES["classes"]):
            below = folder / "tree" / split / f"class{label}"
            below.mkdir(parents=True)
            for number in range(IMAGES[split]):
                image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
                to_pil_image(image).save(below / f"{number}.png")
    torch.manual_seed(0)
    entries = [BatteryEntry((k,), 5, {}) for k in range(2)]
    save_batteries(folder / "batteries.safetensors", BatteryArray(2, hidden=8), entries)
    return folder


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for cells, prepared."""
    made = tempfile.TemporaryDirectory(prefix="matrix-")
    prepare(Path(made.name))
    return made
