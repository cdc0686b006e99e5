"""An error of somebody's own code keeps its words, its line and the option that leads to it; so do Lightning's."""

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eigenscope import cli
from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.lightning_cli import ConfigurationError

DEMO = ["--config", str(Path(__file__).parents[1] / "configs" / "demo.yaml")]
SMALL = ["--data.init_args.train_size=32", "--data.init_args.test_size=16", "--data.init_args.batch_size=16"]
SMALL += ["--data.init_args.num_workers=0", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
SMALL += ["--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
NET = "--model.init_args.net"
TINY = [f"{NET}.init_args.width=8", f"{NET}.init_args.depth=1"]
MODULES = itertools.count()
BODY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        self.num_classes, self.image_size = num_classes, image_size
        self.layer = torch.nn.Linear(3 * image_size**2, num_classes)
        {init}

    def forward(self, images):
        {forward}
        return self.layer(images.flatten(1))
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def own(start="", init="pass", forward="pass", folder="."):
    """Writes a module of one's own; returns its name, which no test has used before."""
    name = f"mynet{next(MODULES)}"
    (Path(folder) / f"{name}.py").write_text(f"{start}\n{BODY.format(init=init, forward=forward)}")
    return name


def refused(*args):
    with pytest.raises((UsageError, ConfigurationError)) as error:
        cli.resolve([*DEMO, *args])
    return str(error.value)


def unbuilt(*args):
    with pytest.raises(ConfigurationError) as error:
        cli.main(["fit", *DEMO, *SMALL, *args])
    return str(error.value)


@pytest.mark.parametrize(
    ("start", "cause"),
    [
        ("import nonexistent_pkg", "ModuleNotFoundError: No module named 'nonexistent_pkg' ({name}.py, line 1)"),
        ("x = (", "SyntaxError: '(' was never closed ({name}.py, line 1)"),
        ("1 / 0", "ZeroDivisionError: division by zero ({name}.py, line 1)"),
        ("from os import nothing_like_it", "ImportError: cannot import name 'nothing_like_it' from 'os'"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(start, cause):
    name = own(start)
    sentence = refused(NET, f"{name}.Net")
    assert sentence.startswith(f"{NET}: {name} cannot be imported: {cause.format(name=name)}")


def test_a_module_that_ends_the_program_says_so():
    name = own("import sys; sys.exit(3)")
    assert refused(NET, f"{name}.Net") == f"{name} ({name}.py, line 1) cannot be imported: SystemExit: 3"


def test_a_package_that_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").write_text("\nimport nonexistent_pkg")
    name = own(folder="mypackage")
    assert refused(NET, f"mypackage.{name}.Net") == (
        f"{NET}: mypackage cannot be imported: ModuleNotFoundError: No module named 'nonexistent_pkg' "
        "(mypackage/__init__.py, line 2)"
    )


def test_a_class_that_is_not_in_its_module_is_one_sentence(tmp_path):
    name = own()
    assert refused(NET, f"{name}.Nett") == f"{NET}: there is no class {name}.Nett; did you mean {name}.Net?"
    assert refused(NET, name).startswith(f"{NET}: {name} is a module ({name}.py), not a class")
    (tmp_path / "token.py").write_text(BODY)
    assert refused(NET, "token.Net").endswith("token.py, which hides token.py here: rename that")


@pytest.mark.parametrize("kind", ["RuntimeError", "ValueError", "KeyError", "OSError"])
def test_a_network_that_refuses_to_be_built_says_where(kind):
    name = own(init=f"raise {kind}('no weights here')")
    words = {"KeyError": "'no weights here'"}.get(kind, "no weights here")
    assert unbuilt(NET, f"{name}.Net") == f"{kind}: {words} ({name}.py, line 10, built by {NET})"


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from([ValueError, RuntimeError, TypeError, ImportError, AttributeError, ArithmeticError]),
    words=st.text("abcdefghij äß-_.:'`", min_size=1, max_size=40).map(str.strip).filter(bool),
    inner=st.booleans(),
    at=st.sampled_from(["start", "init"]),
)
def test_the_words_of_a_cause_are_in_the_sentence(kind, words, inner, at):
    """Whatever is raised, at import or when it is built, alone or from something else: words, line and option stay."""
    statement = f"raise {kind.__name__}({words!r})" + (" from OSError('the first of all')" if inner else "")
    name = own(**{at: statement})
    sentence = refused(NET, f"{name}.Net") if at == "start" else unbuilt(NET, f"{name}.Net")
    assert "\n" not in sentence
    assert NET in sentence
    assert f"{name}.py" in sentence or inner
    assert " ".join(words.split()) in sentence or (inner and at == "start")
    assert "the first of all" in sentence or not inner


def test_a_step_that_fails_keeps_its_traceback_and_says_which(monkeypatch):
    name = own(forward="if self.training: raise RuntimeError('out of ideas')")
    args = ["fit", *DEMO, *SMALL, NET, f"{name}.Net", "--trainer.num_sanity_val_steps=0", "--trainer.logger=false"]
    monkeypatch.setattr(sys, "argv", ["eigenscope", *args, "--trainer.callbacks=[]"])
    with pytest.raises(RuntimeError, match="out of ideas") as error:
        cli.script()
    assert error.value.__notes__ == ["It failed in training_step, epoch 0 (from 0), after 0 steps of the optimizer"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--data.init_args.batch_size=0"], "batch_size must be at least 1, got 0 (--data.init_args.batch_size)"),
        ([f"{NET}.init_args.patch_size=5"], f"patch_size must divide image_size 32, got 5 ({NET}.init_args.patch_"),
        (["--data.init_args.image_size=30"], "patch_size must divide image_size 30, got 4 ({demo}, line 9: "),
        (["--trainer.strategy=ddpp"], "You selected an invalid strategy name: `strategy='ddpp'`."),
        (["--trainer.precision=transformer-engine"], "ModuleNotFoundError: Requirement 'transformer_engine"),
        ([f"{NET}.init_args.num_classes=5"], f"model.init_args.net.init_args.num_classes 5 ({NET}.init_args.num_"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_option(args, sentence):
    said = unbuilt(*(arg for arg in args))
    assert said.startswith(sentence.format(demo=DEMO[1]))
    assert args[0].partition("=")[0].removeprefix("--").rpartition(".")[2] in said or DEMO[1] in said


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("seed_everything=-1", "expected a number from 0 to 4294967295, got -1"),
        (f"seed_everything={2**64}", f"expected a number from 0 to 4294967295, got {2**64}"),
        ("trainer.accumulate_grad_batches=0", "expected at least 1, got 0"),
        ("trainer.check_val_every_n_epoch=0", "expected at least 1, got 0"),
        ("trainer.val_check_interval=0", "expected a number above 0, got 0"),
        ("trainer.log_every_n_steps=-1", "expected at least 0, got -1"),
        ("trainer.gradient_clip_val=.inf", "expected a finite number, got inf"),
        ("trainer.gradient_clip_val=-1", "expected at least 0, got -1"),
        ("model.init_args.optimizer.init_args.lr=.nan", "expected a number, got nan"),
        ("model.init_args.optimizer.init_args.lr=.inf", "expected a finite number, got inf"),
        ("model.init_args.lr_scheduler.init_args.max_lr=-1", "expected at least 0, got -1.0"),
        ("model.init_args.net.init_args.mlp_ratio=.nan", "expected a number, got nan"),
    ],
)
def test_a_number_that_makes_no_sense_is_one_sentence(arg, expected):
    assert refused(f"--{arg}") == f"--{arg.partition('=')[0]}: {expected}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trainer:\n  max_epochs: 3\n  max_epochs: 1", "line 3: max_epochs is already given in line 2; of a key"),
        ("trainer: {max_epochs: 1}\ntrainer: {max_steps: 2}", "line 2: trainer is already given in line 1; of a key"),
        (
            "trainer:\n  callbacks+:\n  - class_path: EpochTable\n    class_path: Scoreboard",
            "line 4: class_path is alr",
        ),
        ("1: 2", "line 1: the key 1 is not a text"),
        ("trainer: &a\n  x: *a", "line 1: an alias (*) stands within what it repeats"),
    ],
)
def test_what_yaml_passes_over_is_one_sentence(text, sentence, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    assert refused("--config", "mine.yaml").startswith(f"mine.yaml, {sentence}")


def test_a_file_with_anchors_and_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbftrainer: {<<: {max_epochs: &n 7}, min_epochs: *n}")
    trainer = cli.resolve([*DEMO, "--config", "mine.yaml"])["trainer"]
    assert (trainer["max_epochs"], trainer["min_epochs"]) == (7, 7)


@pytest.mark.parametrize("name", ["LOCAL_RANK", "PL_GLOBAL_SEED", "SLURM_NTASKS"])
def test_an_environment_variable_that_is_no_number_is_one_sentence(name, monkeypatch):
    monkeypatch.setenv(name, "abc")
    assert refused() == f"the environment variable {name} must be a whole number, got 'abc'"


@pytest.mark.parametrize("who", ["EarlyStopping", "Scoreboard"])
def test_a_metric_that_nobody_logs_is_found_before_training(who, monkeypatch, capsys):
    monitor = "monitor" if who == "EarlyStopping" else "monitor.name"
    args = [f"--trainer.callbacks={who}", f"--trainer.callbacks.init_args.{monitor}=val/los"]
    monkeypatch.setattr(sys, "argv", ["eigenscope", "fit", *DEMO, *SMALL, *TINY, *args])
    with pytest.raises(SystemExit) as stop:
        cli.script()
    assert str(stop.value.code).startswith(
        f"error: {who} monitors val/los, which nothing has logged; did you mean val/loss?"
    )
    assert "ModelCheckpoint" in capsys.readouterr().err  # the option replaced it, which is said


def test_a_metric_of_the_training_that_nobody_logs_is_one_sentence(monkeypatch):
    args = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.init_args.monitor=train/los"]
    monkeypatch.setattr(sys, "argv", ["eigenscope", "fit", *DEMO, *SMALL, *TINY, *args])
    with pytest.raises(SystemExit, match=r"EarlyStopping monitors train/los, .*did you mean train/loss\?$"):
        cli.script()
