"""Runs command lines once for each private name that the adapters read, as if a library no longer had that name.

The names are taken from the source of ``eigenscope/adapters``. Every name has a forked process of its own, which runs
an erroneous command line and a fit that read the name when nothing is hidden: those that do not cannot differ.
Prints one JSON object: by name, empty for none, of each command line its end, what it wrote on stderr, the names that
it read and the sums of the weights that it ended with.

    python hide_private_names.py FOLDER [--third]

``--third`` leaves out two of three names; what is read when nothing is hidden is found out all the same.
"""

import ast
import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import lightning.pytorch.cli  # noqa: F401  here, once for all processes
import torch
import torchvision  # noqa: F401

from eigenscope import adapters, cli
from eigenscope.adapters import Library

DEMO = Path(__file__).absolute().parents[1] / "configs" / "demo.yaml"
ADAMW = "{class_path: torch.optim.AdamW, init_args: {lr: 0.001}}"
FIT = [
    "fit",
    f"--config={DEMO}",
    "--model.init_args.net.init_args={width: 8, depth: 1, num_heads: 2}",
    f"--model.init_args.optimizer={{class_path: SplitOptimizer, init_args: {{matrix: {ADAMW}, other: {ADAMW}}}}}",
    "--data.init_args={train_size: 100, test_size: 100, batch_size: 10, num_workers: 0}",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--model.init_args.lr_scheduler.init_args.total_steps=3",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks=[EpochTable, LearningRateMonitor]",  # which logs in a step before its checkpoint is saved
    "--trainer.callbacks+={class_path: ResumeCheckpoint, init_args: {every_n_steps: 1}}",
]
LINES = {
    "help": ["fit", "--help"],
    "no subcommand": [],
    "no model": ["fit"],
    "no class": ["fit", "--data=SyntheticImageDataModule"],
    "no argument": ["fit", "--data={class_path: SyntheticImagesDataModule, init_args: {train_sizes: 1}}"],
    "no option": ["fit", "--trainer.max_epoch=1"],
    "no type": ["fit", "--data=SyntheticImagesDataModule", "--data.init_args.train_size=big"],
    "no group": ["fit", "--trainer=5"],
    "fit": FIT,
}
BEGUN = Path("runs") / "demo" / "version_0" / "checkpoints" / "last.previous.ckpt"  # after the first of its steps
RESUME = [*FIT, f"--ckpt_path={BEGUN}"]
WORKER = [*FIT, "--data.init_args.num_workers=1"]
CSV_TABLE = "lightning metrics_keys"
CSV = [*FIT, "--trainer.logger=CSVLogger", "--trainer.logger.init_args.save_dir=runs"]
IN_WORKER = "python _on_queue_feeder_error"
AT_IMPORT = ("torch TorchDispatchMode", "torch _addmm_activation", "lightning _parse_ckpt_path")


def names() -> list[str]:
    """``library name`` of every private name in the adapters' source; ``library <name>`` of a function's variable."""
    found = ["lightning _callback_metrics", "lightning _logged_metrics"]  # whose names are put together
    for file in sorted(Path(adapters.__file__).parent.glob("*_names.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else None
            reader = getattr(call.func, "attr", getattr(call.func, "id", None))
            if isinstance(name, str) and reader in ("get", "set", "local"):
                found.append(f"{file.stem.removesuffix('_names')} {f'<{name}>' if reader == 'local' else name}")
    return list(dict.fromkeys(found))


def third() -> list[str]:
    """Every third of them, those that are read at import, in a loader process or by a table of numbers."""
    return sorted({*names()[::3], *AT_IMPORT, IN_WORKER, CSV_TABLE})


def watch(hidden: str, read: set[str]) -> None:
    """Notes which names the adapters read, and lets them find all but one."""

    def watching(reader, written):
        def wrapper(self, owner, name, *rest):
            read.add(written.format(name))
            if written.format(name) == hidden.partition(" ")[2]:
                raise self._missing(name)
            return reader(self, owner, name, *rest)

        return wrapper

    Library.get, Library.local = watching(Library.get, "{}"), watching(Library.local, "<{}>")


def run(args: list[str]) -> tuple[object, str, list[str]]:
    """How a command line ends: with a step or an exit code, what it wrote on stderr, and its weights."""
    wrote, weights = io.StringIO(), []
    with contextlib.redirect_stderr(wrote), contextlib.redirect_stdout(io.StringIO()):
        try:
            done = cli.main(args)
            weights = [parameter.double().sum().item().hex() for parameter in done.model.parameters()]
            end: object = done.trainer.global_step
        except SystemExit as error:
            end = f"exit {error.code}"
        except BaseException:
            end = traceback.format_exc()
    return end, wrote.getvalue(), weights


def forked(hidden: str, lines: dict[str, list[str]], folder: Path, begun: Path | None = None) -> dict[str, dict]:
    """Runs command lines in a process without a name, in a folder of its own that holds what is in another."""
    folder.mkdir()
    if begun is not None:
        shutil.copytree(begun, folder, dirs_exist_ok=True)
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        read: set[str] = set()
        watch(hidden, read)
        results = {}
        for key, args in lines.items():
            read.clear()
            end, stderr, weights = run(args)
            results[key] = {"end": end, "stderr": stderr, "weights": weights, "read": sorted(read)}
        (folder / "result.json").write_text(json.dumps(results))
        os._exit(0)
    os.waitpid(process, 0)
    return json.loads((folder / "result.json").read_text())


def lines_of(name: str, whole: dict[str, dict]) -> dict[str, list[str]]:
    """The last erroneous command line that reads a name, and the last fit."""
    private = name.partition(" ")[2]
    errors = {key: args for key, args in LINES.items() if key != "fit" and private in whole[key]["read"]}
    fits = {key: args for key, args in (("fit", FIT), ("resume", RESUME)) if private in whole[key]["read"]}
    return dict([*list(errors.items())[-1:], *list(fits.items())[-1:]])


def main(folder: Path, wanted: list[str]) -> None:
    torch.set_num_threads(1)
    results = {}
    for name in AT_IMPORT:  # before eigenscope's own modules are imported here
        results[name] = forked(name, {"help": LINES["help"], "fit": FIT}, folder / name.partition(" ")[2])
    from eigenscope.cli import dispatch  # noqa: F401  once for all processes

    begun = folder / "begun"
    forked("", {"fit": [*FIT, "--trainer.max_steps=2"]}, begun)
    results[""] = forked("", LINES, folder / "done") | forked("", {"resume": RESUME}, folder / "resumed", begun)
    forked("", {"fit": [*CSV, "--trainer.max_steps=2"]}, folder / "begun_csv")
    resumed = {"resume": [*CSV, f"--ckpt_path={BEGUN}"]}
    results[CSV_TABLE] = forked(CSV_TABLE, resumed, folder / "csv", folder / "begun_csv")
    results[IN_WORKER] = forked(IN_WORKER, {"fit": WORKER}, folder / "worker")
    for number, name in enumerate(name for name in wanted if name not in results):
        results[name] = forked(name, lines_of(name, results[""]), folder / str(number), begun)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), third() if sys.argv[2:] else names())
