"""Random legal command lines, each run at a tiny size, and what came of each: ``make fuzz``.

A command line is legal if every option is known and every value of its type: shipped experiments and overlays, options
of trainer, data, network and optimizer with values at the edges of what they allow, callbacks, in any order. Each must
run and do what was asked, or end in one sentence that names an option and the cause. Draws depend on seed and number
alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from eigenscope import cli
from tests.forks import run_and_exit

_RESOLVED = "resolved.json"
CONFIGS = Path(__file__).parents[1] / "configs"
FILES = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}
CONTENT = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
EXPERIMENTS = [name for name, content in CONTENT.items() if "data" in content]
OVERLAYS = [name for name in FILES if name not in EXPERIMENTS]
NET, OPTIMIZER, DATA = "model.init_args.net.init_args", "model.init_args.optimizer", "data.init_args"

SMALL_NET: dict[str, dict[str, Any]] = {
    "DeiT": {"width": 16, "num_heads": 2, "depth": 2},
    "CausalTransformer": {"width": 16, "num_heads": 2, "mlp_width": 16},
    "BatteryArray": {"hidden": 8},
}
SMALL_DATA: dict[str, dict[str, Any]] = {
    "SyntheticImagesDataModule": {"train_size": 64, "test_size": 32},
    "CIFAR100DataModule": {"source": "folder", "root": "images"},
    "HeavyTailedNoiseDataModule": {"samples_per_epoch": 32, "val_samples_per_type": 2},
    "AssociativeRecallDataModule": {"samples_per_epoch": 32, "val_samples": 8},
    "GradientSpikeDataModule": {"steps": 60},
}
SMALL_TRAINER = {
    "max_epochs": 1,
    "limit_train_batches": 3,
    "limit_val_batches": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

VALUES: dict[str, list[Any]] = {
    "seed_everything": [0, 1, 2**32 - 1, True, False],
    "finite_guard.policy": ["stop", "skip"],
    "finite_guard.max_skipped": [1, 3],
    "trainer.accelerator": ["cpu", "auto"],
    "trainer.accumulate_grad_batches": [1, 2, 1000],
    "trainer.barebones": [False, True],
    "trainer.benchmark": [True, None],
    "trainer.callbacks": [[], None],
    "trainer.check_val_every_n_epoch": [1, 2],
    "trainer.default_root_dir": [".", "elsewhere"],
    "trainer.detect_anomaly": [True],
    "trainer.deterministic": [True, "warn"],
    "trainer.devices": [1, "1", "auto"],
    "trainer.enable_checkpointing": [True, False],
    "trainer.enable_progress_bar": [True],
    "trainer.fast_dev_run": [True, 1, 2, 0],
    "trainer.gradient_clip_algorithm": ["norm", "value"],
    "trainer.gradient_clip_val": [0, 0.5, 1e-30, None],
    "trainer.inference_mode": [False],
    "trainer.limit_train_batches": [1, 0.5, 1.0, 2],
    "trainer.limit_val_batches": [0, 1, 1.0],
    "trainer.log_every_n_steps": [0, 1, 1000],
    "trainer.logger": [True, False, None, "CSVLogger", "TensorBoardLogger"],
    "trainer.max_epochs": [1, 2],
    "trainer.max_steps": [1, 3, -1],
    "trainer.max_time": ["00:00:00:30"],
    "trainer.min_epochs": [0, 1, 3],
    "trainer.min_steps": [0, 2, 1000],
    "trainer.num_nodes": [1],
    "trainer.num_sanity_val_steps": [0, 1, -1],
    "trainer.overfit_batches": [0, 1, 0.5, 1.0],
    "trainer.plugins": [[], None],
    "trainer.precision": ["32-true", "bf16-mixed", "bf16-true", "64-true", "bf16", 64],
    "trainer.profiler": ["simple", "advanced", None],
    "trainer.reload_dataloaders_every_n_epochs": [0, 1],
    "trainer.strategy": ["auto", "single_device", "ddp"],
    "trainer.sync_batchnorm": [True],
    "trainer.use_distributed_sampler": [False],
    "trainer.val_check_interval": [1, 1.0, 0.5, 2],
    f"{DATA}.batch_size": [1, 3, 16],
    f"{DATA}.num_workers": [0, 1, "auto"],
    f"{DATA}.image_size": [8, 32],
    f"{NET}.num_classes": [100],
    f"{NET}.patch_size": [2, 4],
    f"{NET}.dropout": [0.0, 0.5],
    f"{NET}.depth": [1, 2],
    f"{NET}.hidden": [8, 16],
    f"{OPTIMIZER}.init_args.lr": [0.0, 1e-30, 1e-3],
    f"{OPTIMIZER}.init_args.weight_decay": [0.0, 0.1],
    f"{OPTIMIZER}.init_args.betas": [[0.0, 0.0], [0.9, 0.999]],
    f"{OPTIMIZER}.init_args.eps": [0.0, 1e-8],
    OPTIMIZER: ["torch.optim.SGD", "torch.optim.RMSprop", "torch.optim.Adadelta"],
    "model.init_args.lr_scheduler": [
        None,
        "eigenscope.optim.CosineAnnealingLR",
        "torch.optim.lr_scheduler.ConstantLR",
        "lightning.pytorch.cli.ReduceLROnPlateau",
    ],
    "model.init_args.lr_interval": ["epoch", "step"],
    "model.init_args.label_smoothing": [0.0, 0.5, 1.0],
}
#: Values that few experiments can run with, or none: of the right type, at or beyond the edge of what is allowed.
EDGES: dict[str, list[Any]] = {
    "seed_everything": [-1, 2**32],
    "finite_guard.max_skipped": [0],
    "trainer.accelerator": ["gpu", "tpu", "mps"],
    "trainer.accumulate_grad_batches": [0, -1],
    "trainer.check_val_every_n_epoch": [0, -1, None],
    "trainer.devices": [[0], 0, "0"],
    "trainer.fast_dev_run": [-1],
    "trainer.gradient_clip_val": [-1, float("inf"), float("nan")],
    "trainer.limit_train_batches": [0, -1, 0.01],
    "trainer.limit_val_batches": [0.01],
    "trainer.log_every_n_steps": [-1],
    "trainer.max_epochs": [0, -2],
    "trainer.max_steps": [0, -2],
    "trainer.max_time": ["00:00:00:00"],
    "trainer.num_nodes": [0],
    "trainer.num_sanity_val_steps": [-2],
    "trainer.precision": ["16-mixed", "16-true", "16"],
    "trainer.reload_dataloaders_every_n_epochs": [-1],
    "trainer.strategy": ["fsdp"],
    "trainer.val_check_interval": [0, 0.0, 100],
    f"{DATA}.batch_size": [0, -1, 10**6],
    f"{DATA}.num_workers": [-1],
    f"{DATA}.image_size": [7, 1, 0],
    f"{NET}.num_classes": [5],
    f"{NET}.patch_size": [5, 0],
    f"{NET}.dropout": [1.0, -0.1],
    f"{NET}.depth": [0],
    f"{NET}.hidden": [0, -1],
    f"{OPTIMIZER}.init_args.lr": [1e20, -1.0, float("nan"), float("inf")],
    f"{OPTIMIZER}.init_args.weight_decay": [1e20, -1.0],
    f"{OPTIMIZER}.init_args.betas": [[1.0, 1.0], [-1.0, 0.5]],
    f"{OPTIMIZER}.init_args.eps": [-1.0],
    OPTIMIZER: ["torch.optim.LBFGS"],
    "model.init_args.label_smoothing": [-0.1],
    "ckpt_path": ["nowhere.ckpt", "."],
    "warm_start": ["nowhere.safetensors", "."],
}
CALLBACKS: list[tuple[str, dict[str, Any]]] = [
    ("EarlyStopping", {"monitor": "val/loss"}),
    ("ModelCheckpoint", {"every_n_train_steps": 1, "save_top_k": -1}),
    ("LearningRateMonitor", {}),
    ("LearningRateMonitor", {"logging_interval": "step"}),
    ("EpochTable", {}),
    ("Scoreboard", {}),
    ("ResumeCheckpoint", {}),
    ("KVCacheCompression", {"samples": 1}),
    ("ReconstructionGrid", {}),
    ("EigenbasisRotation", {"every_n_steps": 1}),
    ("StochasticWeightAveraging", {"swa_lrs": 0.001}),
    ("StochasticWeightAveraging", {"swa_lrs": 0.001, "swa_epoch_start": 5}),
    ("EMAWeightAveraging", {}),
    ("ModelSummary", {"max_depth": -1}),
    ("DeviceStatsMonitor", {}),
    ("GradientAccumulationScheduler", {"scheduling": {0: 2}}),
    ("Timer", {"duration": "00:00:01:00"}),
    ("ThroughputMonitor", {}),
]
BAD_CALLBACKS: list[tuple[str, dict[str, Any]]] = [
    ("EarlyStopping", {"monitor": "val/los"}),
    ("EarlyStopping", {"monitor": "train/loss", "patience": -1}),
    ("ModelCheckpoint", {"monitor": "val/acc", "save_top_k": -2}),
    ("ModelCheckpoint", {"monitor": "val/mse", "mode": "min"}),
]


@dataclass(frozen=True)
class Outcome:
    """What came of a command line.

    Attributes:
        code: the exit status, as of a shell; None if it had to be stopped.
        output: what it printed, to both streams.
        seconds: how long it took.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def sentence(self) -> str:
        """What stands after ``error: `` at the beginning of a line; nothing unless there is just one such line."""
        found = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return found[0].removeprefix("error: ") if len(found) == 1 else ""

    @property
    def kind(self) -> str:
        """``ran``, ``refused`` in a sentence, ``traceback``, ``hung``, or ``silent``: failed without a word."""
        if self.code is None:
            return "hung"
        if "Traceback (most recent call last)" in self.output:
            return "traceback"
        if self.code == 0:
            return "ran"
        return "refused" if self.sentence else "silent"


@dataclass
class Line:
    """A command line, and what it asks for.

    Attributes:
        args: the arguments.
        files: configuration files that it names and that do not exist yet.
        asked: values by their dotted keys.
        overlays: names of shipped overlays.
        added: names of callbacks that it adds.
    """

    args: list[str]
    files: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def missed(self, config: dict[str, Any], output: str) -> list[str]:
        """What a run was asked for and neither did nor spoke of."""
        found = [key for key, value in self.asked.items() if not _holds(config, key.split("."), value)]
        callbacks = config["trainer"]["callbacks"] or []
        there = [entry["class_path"].rpartition(".")[2] for entry in callbacks if isinstance(entry, dict)]
        wanted = list(self.added)
        for name in self.overlays:
            content = CONTENT[name]
            wanted += [entry["class_path"] for entry in content.get("trainer", {}).get("callbacks+", ())]
            found += [key for key, value in _scalars(content.get("model", {}), "model")
                      if not self._replaces(key) and not _holds(config, key.split("."), value)]  # fmt: skip
        found += [name for name in wanted if name not in there]
        spoken = "\n".join(line for line in output.splitlines() if line.startswith("warning: "))
        return [key for key in found if key.rpartition(".")[2] not in spoken]

    def _replaces(self, key: str) -> bool:
        """Whether an option chooses another class than an overlay's, of which the key is, as options are for."""
        return any(key.startswith(f"{other}.") for other in self.asked)

    def is_named(self, sentence: str) -> bool:
        """Whether a sentence names an option or a file of the command line, or says which option would help."""
        asked = {key.rpartition(".")[2] for key in self.asked} | {*self.added, self.args[0]}
        options = re.findall(r"--(\w+)", sentence)
        return bool(asked & set(re.findall(r"\w+", sentence)) or options or re.search(r"\w+\.yaml", sentence))


def draw(seed: int, number: int) -> Line:
    """The command line of a number."""
    chance = random.Random(f"{seed}-{number}")
    experiment = chance.choice(EXPERIMENTS)
    content = CONTENT[experiment]
    line = Line([], overlays=[])
    values, callbacks = VALUES, CALLBACKS
    if chance.random() < 0.3:
        values = {key: VALUES.get(key, []) + EDGES.get(key, []) for key in dict.fromkeys([*VALUES, *EDGES])}
        callbacks = CALLBACKS + BAD_CALLBACKS
    fitting = _fitting(values, content)
    line.asked = {key: chance.choice(values[key]) for key in chance.sample(fitting, chance.choice((0, 1, 1, 2, 3)))}
    if OPTIMIZER in line.asked:
        line.asked = {key: value for key, value in line.asked.items() if not key.startswith(f"{OPTIMIZER}.")}
    groups = [[*_config(chance, str(FILES[experiment]))]]
    line.overlays = chance.sample(OVERLAYS, chance.choice((0, 0, 0, 1, 1, 2)))
    groups += [_config(chance, str(FILES[name])) for name in line.overlays]
    if line.asked and chance.random() < 0.2:  # one of them in a file
        key = chance.choice(list(line.asked))
        line.files["mine.yaml"] = yaml.safe_dump(_nested(key, line.asked[key]))
        groups.append(_config(chance, "mine.yaml"))
        groups += [_option(chance, other, value) for other, value in line.asked.items() if other != key]
    else:
        groups += [_option(chance, key, value) for key, value in line.asked.items()]
    for name, arguments in chance.sample(callbacks, chance.choice((0, 0, 0, 1, 2))):
        options = (_option(chance, f"trainer.callbacks.init_args.{key}", value) for key, value in arguments.items())
        groups.append([f"--trainer.callbacks+={name}", *(part for option in options for part in option)])
        line.added.append(name)
    if chance.random() < 0.2:
        chance.shuffle(groups)
    small = [f"--{key}={_text(value)}" for key, value in _small(content) if key not in line.asked]
    subcommand = chance.choice(("fit",) * 9 + ("validate", "test", "predict"))
    line.args = [subcommand, *(part for group in groups for part in group), *small]
    return line


def _fitting(values: dict[str, list[Any]], content: dict[str, Any]) -> list[str]:
    """The keys whose class has such an argument, as far as the experiment says."""
    found = []
    for key in values:
        *parts, last = key.split(".")
        if parts and parts[0] in ("model", "data"):
            arguments: Any = content
            for part in parts:
                arguments = arguments.get(part, {}) if isinstance(arguments, dict) else {}
            if last not in arguments:
                continue
        found.append(key)
    return found


def _small(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    net, data = content["model"]["init_args"]["net"], content["data"]["class_path"]
    arguments = SMALL_NET.get(net["class_path"], {"hidden": 8} if "hidden" in net["init_args"] else {})
    if "taps" in net["init_args"]:
        arguments = {key: value for key, value in arguments.items() if key != "depth"} | {"taps.rank": 4}
    yield from ((f"{NET}.{key}", value) for key, value in arguments.items())
    if net["class_path"] == "ImplantedVAE":
        yield f"{NET}.container", "batteries.safetensors"
    yield from ((f"{DATA}.{key}", value) for key, value in SMALL_DATA[data].items())
    if data != "GradientSpikeDataModule":
        yield from ((f"{DATA}.batch_size", 4), (f"{DATA}.num_workers", 0))
    yield from ((f"trainer.{key}", value) for key, value in SMALL_TRAINER.items())


def _config(chance: random.Random, file: str) -> list[str]:
    return chance.choice((["--config", file], [f"--config={file}"], ["-c", file]))


def _option(chance: random.Random, key: str, value: Any) -> list[str]:
    return [f"--{key}={_text(value)}"] if chance.random() < 0.7 else [f"--{key}", _text(value)]


def _text(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return text


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    content: dict[str, Any] = value
    return content


def _scalars(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _scalars(value, f"{key}.{name}")
    else:
        yield key, content


def _holds(config: Any, key: list[str], value: Any) -> bool:
    for part in key:
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    if isinstance(config, dict) and "class_path" in config:
        config = config["class_path"]
    if isinstance(value, str) and isinstance(config, str):
        return config.rpartition(".")[2] == value.rpartition(".")[2]
    return bool(config == value) or str(config) == str(value)


def run(args: list[str], folder: Path, timeout: float = 60.0) -> Outcome:
    """Runs one command line in a folder, as the installed command would, in a fork of this process."""
    began = time.perf_counter()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        run_and_exit(partial(_child, args, folder, writer))
    os.close(writer)
    output, code = bytearray(), None
    while (left := began + timeout - time.perf_counter()) > 0:
        if select.select([reader], [], [], left)[0]:
            part = os.read(reader, 1 << 16)
            output += part
            if not part:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                break
    if code is None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(reader)
    return Outcome(code, output.decode(errors="replace"), time.perf_counter() - began)


def _child(args: list[str], folder: Path, writer: int) -> None:
    os.setsid()
    os.chdir(folder)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.argv = ["eigenscope", *args]
    warnings.resetwarnings()  # under pytest they are errors
    cli.script()
    if args[0] == "fit":
        (folder / _RESOLVED).write_text(json.dumps(cli.resolve(args[1:])))


def verdict(line: Line, outcome: Outcome, folder: Path) -> str:
    """The kind of an outcome; a sentence that names nothing is ``unnamed``, one that did less than asked ``silent``."""
    if outcome.kind == "refused" and not line.is_named(outcome.sentence):
        return "unnamed"
    if outcome.kind == "ran" and line.args[0] == "fit":
        missed = line.missed(json.loads((folder / _RESOLVED).read_text()), outcome.output)
        return f"silent: {', '.join(missed)}" if missed else "ran"
    return outcome.kind


def attempt(seed: int, number: int, prepared: Path, timeout: float = 90.0) -> tuple[Line, Outcome, str]:
    """Draws a command line and runs it in a folder of its own, beside copies of what ``prepared`` holds."""
    line = draw(seed, number)
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        for source in prepared.iterdir():
            (folder / source.name).symlink_to(source)
        for file, text in line.files.items():
            (folder / file).write_text(text)
        line.args = [str(folder / arg) if arg in line.files else arg for arg in line.args]
        line.args = [arg.replace("=mine.yaml", f"={folder}/mine.yaml") for arg in line.args]
        outcome = run(line.args, folder, timeout)
        return line, outcome, verdict(line, outcome, folder)


def _attempts(seed: int, numbers: Sequence[int], prepared: Path, results: Any) -> None:
    for number in numbers:
        results.put((number, attempt(seed, number, prepared)))


def prepare(folder: Path) -> None:
    """Writes the images and the battery container that some experiments read."""
    import torch
    from torchvision.transforms.v2.functional import to_pil_image

    from eigenscope.nn import BatteryArray, BatteryEntry, save_batteries

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in range(2):
            place = folder / "images" / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(8):
                image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
                to_pil_image(image).save(place / f"{number}.png")
    save_batteries(
        folder / "batteries.safetensors", BatteryArray(2, hidden=8), [BatteryEntry((k,), 5, {}) for k in (0, 1)]
    )


def main() -> int:
    """Runs a number of command lines, prints the faults and the figures; returns the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--start", type=int, default=0, help="the first number, to see one again")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    from eigenscope.cli import dispatch  # noqa: F401  once, before the forks

    prepared = Path(tempfile.mkdtemp(prefix="fuzz"))
    prepare(prepared)
    numbers = range(options.start, options.start + options.count)
    counts: Counter[str] = Counter()
    began = time.perf_counter()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()  # and no pool, whose processes may have no children with loaders
    workers = [
        context.Process(target=_attempts, args=(options.seed, numbers[first :: options.workers], prepared, results))
        for first in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for _ in numbers:
        number, (line, outcome, kind) = results.get()
        counts[kind.partition(":")[0]] += 1
        if options.count == 1 or kind not in ("ran", "refused"):
            last = outcome.output if options.count == 1 else "\n".join(outcome.output.splitlines()[-3:])
            print(f"== {number} {kind}\n{' '.join(line.args)}\n{last}", flush=True)
    shutil.rmtree(prepared)
    seconds = time.perf_counter() - began
    figures = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    print(f"{options.count} command lines of seed {options.seed} in {seconds:.0f} s: {figures}")
    return sum(count for kind, count in counts.items() if kind not in ("ran", "refused"))


if __name__ == "__main__":
    sys.exit(min(main(), 1))
