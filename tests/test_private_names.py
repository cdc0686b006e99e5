"""Private names of other libraries: read in the adapters alone, and done without where a library has dropped one."""

import ast
import functools
import json
import os
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import Progress
from torchmetrics import MeanMetric

from eigenscope.adapters import torch_names

ROOT = Path(__file__).parents[1]
ADAPTERS = ("eigenscope/adapters", "eigenscope/optim/emerging.py", "eigenscope/kv/cache/hugging_face.py")
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "_exit"}  # of named tuples, and of os
HELPER = ROOT / "tests" / "hide_private_names.py"
NAMES, THIRD = (runpy.run_path(str(HELPER))[which]() for which in ("names", "third"))
QUIET = {  # what is not said: nothing can call the operation; nobody asked for TF32; the worker says it
    "torch _addmm_activation",
    "torch TorchDispatchMode",
    "python _on_queue_feeder_error",
}


def sources():
    for folder in ("callbacks", "datamodules", "eigenscope", "lightning_modules"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            place = file.relative_to(ROOT).as_posix()
            if not place.startswith(ADAPTERS):
                yield place, ast.parse(file.read_text())


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != "" and name not in DOCUMENTED


def named_by(node):
    """The owner and the name that an expression reads, as ``owner.name`` or by ``getattr`` and its like."""
    if isinstance(node, ast.Attribute):
        return ast.unparse(node.value), node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
        name = node.args[1]
        if isinstance(name, ast.Constant):
            return ast.unparse(node.args[0]), str(name.value)
        if isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
            return ast.unparse(node.args[0]), str(name.values[0].value)
    return "", ""


@functools.cache
def own_names():
    """What the classes of this project call private themselves."""
    found = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
                            found.add(part.attr)
                        elif isinstance(part, ast.Name):
                            found.add(part.id)
    return found


@functools.cache
def foreign_names():
    """What the objects of other libraries that are met most often call private."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    objects = [
        trainer,
        trainer.fit_loop,
        trainer.fit_loop.epoch_loop,
        trainer.strategy,
        Callback(),
        LightningCLI,
        LightningDataModule(),
        LightningModule(),
        MeanMetric(),
        Progress(),
        TensorBoardLogger("."),
        jsonargparse.ArgumentParser(),
        torch.nn.Linear(1, 1),
        torch.optim.SGD([torch.zeros(1)]),
        torch.utils.data.DataLoader([0]),
    ]
    return {name for each in objects for name in dir(each) if is_private(name)}


def private_sites(place, tree, own, foreign):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            paths = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            others = [path for path in paths if not path.startswith("eigenscope")]
            bad = [path for path in others if any(map(is_private, path.split(".")))]
            yield from (f"{place}:{node.lineno} import {path}" for path in bad)
            continue
        owner, name = named_by(node)
        if is_private(name) and (name not in own or (name in foreign and owner not in ("self", "cls"))):
            yield f"{place}:{node.lineno} {owner}.{name}"


def test_no_private_name_of_another_library_is_read_outside_the_adapters():
    own, foreign = own_names(), foreign_names()
    assert [site for place, tree in sources() for site in private_sites(place, tree, own, foreign)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from torch.utils._pytree import tree_map",
        "import torch._dynamo",
        "trainer._logger_connector",
        "self._actions",
        "getattr(module, '_buffers')",
        "module._buffers",
        "self.net._compiled_call_impl",
    ],
)
def test_what_counts_as_a_private_name(line):
    own = own_names()
    assert len(list(private_sites("x.py", ast.parse(line), own, foreign_names()))) == 1


def test_what_does_not_count():
    lines = "self._own = 1\nother._own\ncode._replace(z=1)\nfrom eigenscope.callbacks import _output\nx.__dict__"
    assert list(private_sites("x.py", ast.parse(lines), {"_own"}, set())) == []


@pytest.fixture(scope="session")
def results(tmp_path_factory, pytestconfig):
    folder = tmp_path_factory.mktemp("names")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(HELPER), str(folder)]
    command += [] if pytestconfig.getoption("--long") else ["--third"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = [pytest.mark.xdist_group("private_names"), pytest.mark.timeout(900)]


def test_with_all_names_help_reads_none_and_a_resumed_run_ends_as_one_that_was_not_stopped(results):
    whole = results[""]
    assert whole["help"]["end"] == "exit 0"
    assert whole["help"]["read"] == []
    assert whole["fit"]["end"] == whole["resume"]["end"] == 3
    assert whole["fit"]["weights"] == whole["resume"]["weights"] != []
    assert [result["stderr"] for result in whole.values() if "note: " in result["stderr"]] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in THIRD else pytest.mark.long) for name in NAMES]
)
def test_without_a_name_the_command_line_works_and_says_what_is_missing(results, name):
    whole, private = results[""], name.partition(" ")[2].strip("<>")
    assert results[name]  # some command line reads it
    said = []
    for line, result in results[name].items():
        assert result["end"] == whole[line]["end"]
        notes = [text for text in result["stderr"].splitlines() if text.startswith("note: ")]
        assert all(text.endswith(f" has no {private}") for text in notes)
        said += notes
        if result["end"] == "exit 2":
            assert len([text for text in result["stderr"].splitlines() if text.startswith("error: ")]) == 1
        if line == "fit":
            assert result["weights"] == whole["fit"]["weights"]
    assert len(set(said)) == len(said)
    assert bool(said) != (name in QUIET)


def test_without_a_dispatch_mode_products_stay_in_float32(monkeypatch, capsys):
    monkeypatch.delattr("torch.utils._python_dispatch.TorchDispatchMode")
    mode = torch_names._dispatch_mode()
    for _ in range(2):
        with mode():
            assert torch.equal(torch.eye(2) @ torch.ones(2, 2), torch.ones(2, 2))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "note: TF32 is not emulated and matrix products stay in float32, because "
        f"torch {version('torch')} has no torch.utils._python_dispatch.TorchDispatchMode"
    )
