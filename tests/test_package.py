"""The wheel and what is installed: one importable name, which no folder of somebody else's can take the place of."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from shutil import copytree, ignore_patterns, unpack_archive

import pytest

from eigenscope import cli
from eigenscope.cli.shipped_configs import with_shipped_configs

ROOT = Path(__file__).parents[1]
LINKS = ("callbacks", "configs", "datamodules", "lightning_modules")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NET = "--model.init_args.net.init_args"
TINY = [
    *(f"{NET}.width=8", f"{NET}.depth=1", f"{NET}.num_heads=1"),
    *("--data.init_args.train_size=100", "--data.init_args.test_size=100", "--data.init_args.batch_size=50"),
    *("--data.init_args.num_workers=0", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"),
]
MINE = """
from pathlib import Path
from lightning.pytorch import Callback

class Mine(Callback):
    def on_train_end(self, trainer, module):
        Path("mine").write_text(type(module).__module__)
"""
CONSOLE_SCRIPT = "import sys; from {module} import {function}; sys.exit({function}())"
EVERY = """
import runpy, sys
from contextlib import suppress
from pathlib import Path

del sys.path[0]  # the working directory, which a console script does not search first
sys.argv = {compare}
with suppress(SystemExit):
    runpy.run_path(sys.argv[0], run_name="__main__")
(run,) = Path("runs/compare/demo").glob("seed0-*/")
for other in ("validate", "test", "predict"):
    sys.argv = ["eigenscope", other, f"--config={{run}}/config.yaml", f"--ckpt_path={{run}}", "--trainer.logger=false"]
    runpy.run_module("eigenscope", run_name="__main__")
"""
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def checkout(target):
    left_out = ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
    return copytree(ROOT, target, symlinks=True, ignore=left_out)


def build(what, source, target):
    subprocess.run([sys.executable, "-c", BUILD, what, str(target)], cwd=source, check=True, capture_output=True)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution of this checkout."""
    pytest.importorskip("setuptools")
    place = tmp_path_factory.mktemp("built")
    source = checkout(place / "source")
    return build("wheel", source, place / "wheel"), build("sdist", source, place / "sdist")


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """The wheel, unpacked as an installer does it."""
    place = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(place)
    return place


def installed(command, site, folder):
    """Runs the interpreter in a folder, with the wheel and the packages it needs; returns what it printed."""
    needed = [entry for entry in sys.path if entry.endswith("-packages")]
    environment = {"PYTHONPATH": os.pathsep.join([str(site), *needed]), "OMP_NUM_THREADS": "1", "PATH": ""}
    python = [sys.executable, "-S", "-W", "ignore"]  # -S: without .pth files, of which one adds this checkout
    done = subprocess.run([*python, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def console_script(site, folder):
    """The command ``eigenscope`` as an installer writes it, outside of the working directory."""
    (distribution,) = distributions(name="eigenscope", path=[str(site)])
    (point,) = distribution.entry_points.select(group="console_scripts", name="eigenscope")
    file = folder / "bin" / "eigenscope"
    file.parent.mkdir()
    file.write_text(CONSOLE_SCRIPT.format(module=point.module, function=point.attr))
    return str(file)


def set_traps(folder, *names):
    """Modules and packages of somebody else's, each of which ends the interpreter that imports it."""
    folder.mkdir()
    for name in names:
        file = folder / name if name.endswith(".py") else folder / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"raise SystemExit('{name} is a trap')")
    return folder


def contents(wheel):
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/RECORD")}


def test_a_wheel_holds_one_name_with_everything_in_it(built):
    files = contents(built[0])
    assert {name.partition("/")[0] for name in files} == {"eigenscope", f"eigenscope-{VERSION}.dist-info"}
    expected = {path.relative_to(ROOT) for path in (ROOT / "eigenscope").rglob("*.py")} | {Path("eigenscope/py.typed")}
    for link in LINKS:
        kind = "*.yaml" if link == "configs" else "*.py"
        expected |= {"eigenscope" / path.relative_to(ROOT) for path in (ROOT / link).rglob(kind)}
    assert {name for name in files if name.startswith("eigenscope/")} == {path.as_posix() for path in expected}


def test_a_source_distribution_is_a_checkout_and_builds_the_same_wheel(built, tmp_path):
    unpack_archive(built[1], tmp_path, filter="data")
    source = tmp_path / f"eigenscope-{VERSION}"
    for link in LINKS:
        assert (source / "eigenscope" / link).readlink() == Path("..", link)
    assert {"cli.py", "Makefile", "benchmarks", "docs", "examples", "tests"} <= {path.name for path in source.iterdir()}
    assert contents(build("wheel", source, tmp_path / "again")) == contents(built[0])


def test_in_a_folder_of_traps_every_subcommand_runs_this_project(site, tmp_path):
    names = ("cli.py", "yaml.py", "callbacks", "datamodules", "lightning_modules", "configs", "tests")
    folder = set_traps(tmp_path / "theirs", *names)
    (folder / "configs" / "demo.yaml").write_text("trap: true")
    (folder / "mine.py").write_text(MINE)
    compare = [console_script(site, tmp_path), "compare", "--config", "eigenscope:demo", *TINY]
    printed = installed(["-c", EVERY.format(compare=[*compare, "--trainer.callbacks+=mine.Mine"])], site, folder)
    assert "Head-to-head (runs/compare/demo.txt)" in printed
    assert (folder / "mine").read_text() == "eigenscope.lightning_modules.image_classification"
    assert {"val/acc", "test/acc"} <= set(printed.split())


def test_classes_of_a_package_called_callbacks_are_found_in_the_working_directory(site, tmp_path):
    folder = set_traps(tmp_path / "theirs", "cli.py", "datamodules")
    (folder / "callbacks").mkdir()
    (folder / "callbacks" / "__init__.py").write_text(MINE)
    arguments = ["fit", "--config", "eigenscope:demo", *TINY, "--trainer.callbacks+=callbacks.Mine"]
    installed([console_script(site, tmp_path), *arguments], site, folder)
    assert (folder / "mine").read_text() == "eigenscope.lightning_modules.image_classification"


def test_the_installed_package_is_the_wheels_and_knows_its_version(site, tmp_path):
    printed = installed(["-c", "import eigenscope as e; print(e.__file__, e.__version__)"], site, tmp_path)
    assert printed.split() == [str(site / "eigenscope" / "__init__.py"), VERSION]


@pytest.mark.parametrize("command", [["cli.py"], ["-m", "eigenscope"]])
def test_a_checkout_without_symbolic_links_says_so(command, tmp_path):
    folder = checkout(tmp_path / "checkout")
    for link in LINKS:  # as git writes one where core.symlinks is false
        (folder / "eigenscope" / link).unlink()
        (folder / "eigenscope" / link).write_text(f"../{link}")
    done = subprocess.run([sys.executable, *command, "fit"], cwd=folder, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("error: eigenscope/callbacks, eigenscope/configs, eigenscope/datamodules, ")
    assert "should be symbolic links" in line
    assert "git config core.symlinks true" in line


def test_the_working_directory_comes_last(tmp_path, monkeypatch):
    def searched(folder, *before):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*before, "installed"])
        cli._find_classes_in_working_directory()
        return sys.path

    assert searched(tmp_path, str(tmp_path)) == searched(tmp_path, "bin")[1:] == ["installed", str(tmp_path)]
    assert searched(ROOT, str(ROOT)) == [str(ROOT), "installed"]  # ``python cli.py``


@pytest.fixture
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("fit --config eigenscope:demo --seed_everything 3", "fit --config {}/demo.yaml --seed_everything 3"),
        ("--config=eigenscope:demo -c eigenscope:cv/align_hand", "--config={}/demo.yaml -c {}/cv/align_hand.yaml"),
        ("--config eigenscope:demo eigenscope:optimizer/soap.yaml", "--config {}/demo.yaml {}/optimizer/soap.yaml"),
        ("--config ./eigenscope:demo x.yaml", "--config ./eigenscope:demo x.yaml"),  # files of one's own
        ("--trainer.logger.init_args.name eigenscope:demo", "--trainer.logger.init_args.name eigenscope:demo"),
        ("--config x.yaml --a=eigenscope:demo eigenscope:demo", "--config x.yaml --a=eigenscope:demo eigenscope:demo"),
    ],
)
def test_a_shipped_configuration_is_named_wherever_a_configuration_is(typed, expected):
    assert with_shipped_configs(typed.split()) == expected.replace("{}", str(ROOT / "configs")).split()


@pytest.mark.usefixtures("_elsewhere")
def test_paths_in_a_shipped_configuration_are_relative_to_the_working_directory():
    config = cli.resolve(["--config", "eigenscope:deit_svd"])
    assert config["data"]["init_args"]["root"] == "data/cifar100"
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "runs"
    (board,) = [c for c in config["trainer"]["callbacks"] if c["class_path"] == "eigenscope.callbacks.Scoreboard"]
    assert board["init_args"]["path"] == "runs/scoreboard.csv"


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["fit", "--config", "eigenscope:dmeo"], "eigenscope:dmeo in {}; did you mean eigenscope:demo?"),
        (["test", "--config=eigenscope:soap"], "eigenscope:soap in {}; did you mean eigenscope:optimizer/soap?"),
        (
            ["compare", "--config", "eigenscope:demo", "eigenscope:cv/aling_hand"],
            "eigenscope:cv/aling_hand in {}; did you mean eigenscope:cv/align_hand?",
        ),
        (["fit", "-c", "eigenscope:../tests/x"], "eigenscope:../tests/x in {}"),
    ],
)
def test_an_unknown_configuration_is_said_with_the_nearest_name(args, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: there is no configuration {sentence.format(ROOT / 'configs')}\n"


@pytest.mark.usefixtures("_elsewhere")
def test_an_error_in_a_shipped_configuration_names_its_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "eigenscope:demo", "--config", "eigenscope:implant/random"])
    at = f"{ROOT / 'configs' / 'implant' / 'random.yaml'}, line 6: model.init_args.net.init_args.source"
    assert capsys.readouterr().err.startswith(f"error: {at}: DeiT has no argument source; ")
