"""The sentences without Lightning: a parser over classes of the test's own."""

import dataclasses
import random
import string
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest
import torch

from eigenscope.cli.errors.class_names import class_fault, known_classes
from eigenscope.cli.errors.config_location import config_values, options, origin
from eigenscope.cli.errors.parse_errors import explain_parse_error
from eigenscope.cli.errors.parser import ExplainingParser, UsageError
from eigenscope.cli.errors.suggestions import hint, listed, nearest, nearest_key
from eigenscope.cli.errors.type_descriptions import choices, classes, in_words


class Shape:
    """What a scene holds."""

    def __init__(self, colour: Literal["red", "green"] = "red", size: float = 1.0) -> None:
        self.colour = colour
        self.size = size


class Ring(Shape):
    def __init__(self, colour: Literal["red", "green"] = "red", size: float = 1.0, hole: int = 1) -> None:
        super().__init__(colour, size)
        self.hole = hole


@dataclasses.dataclass
class Frame:
    width: int = 3


class Pen:
    def __init__(
        self, tip: tuple[float | torch.Tensor, float | torch.Tensor] = (1.0, 1.0), ink: str | Shape = ""
    ) -> None:
        self.tip = tip


class Scene:
    def __init__(self, shapes: list[Shape] | Shape | None = None, frame: Frame | None = None, title: str = "") -> None:
        self.shapes = shapes


RING = "{{class_path: Ring, {}}}".format
MISPLACED = "put hole below init_args of Ring"


class SceneParser(ExplainingParser):
    explain = staticmethod(explain_parse_error)


@pytest.fixture
def parser():
    made = SceneParser(prog="scene", allow_abbrev=False)
    made.add_argument("--config", action="config")
    made.add_argument("--depth", type=int, default=1)
    made.add_class_arguments(Scene, "scene")
    made.add_class_arguments(Pen, "pen")
    return made


def refused(parser, *args):
    with pytest.raises(UsageError) as error:
        parser.parse_args(list(args))
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("argument", "words"),
    [("size", "float"), ("colour", "red or green"), ("hole", "int")],
)
def test_null_where_a_class_takes_none(parser, tmp_path, argument, words):
    ring = f"{{class_path: Ring, init_args: {{{argument}: null}}}}"
    assert refused(parser, f"--scene.shapes=[{ring}]").endswith(f"init_args.{argument}: expected {words}, got null")
    file = tmp_path / "scene.yaml"
    file.write_text(f"scene:\n  shapes:\n  - class_path: Ring\n    init_args:\n      {argument}: null\n")
    assert refused(parser, f"--config={file}").endswith(f"init_args.{argument}: expected {words}, got null")


def test_null_where_it_is_one_of_the_values(parser):
    config = parser.parse_args(["--scene.shapes=null", "--scene.frame=null"])
    assert (config.scene.shapes, config.scene.frame) == (None, None)


def test_what_is_right_is_parsed_as_before(parser):
    config = parser.parse_args(["--depth=2", "--scene.shapes=[{class_path: Ring, init_args: {hole: 4}}]"])
    assert (config.depth, config.scene.shapes[0].init_args.hole) == (2, 4)
    assert isinstance(parser.instantiate(config).scene.shapes[0], Ring)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--dept=2"], "--dept is unknown; did you mean --depth?"),
        (["--depth=two"], "--depth: expected int, got 'two'"),
        (["--depth"], "--depth: expected one argument"),
        (["--scene.titel=x"], "--scene.titel is unknown; did you mean --scene.title?"),
        (["--scene=3"], "--scene: expected a mapping of options, or a file with one, got 3"),
        (["--scene.frame.widht=3"], "--scene.frame.widht: Frame has no argument widht; did you mean width?"),
        (["--scene.shapes=Rign"], "--scene.shapes: there is no class Rign; did you mean {module}.Ring?"),
        (["--scene.shapes.colour=rde"], "--scene.shapes.colour: expected red or green, got 'rde'; did you mean red?"),
        (
            ["--scene.shapes=[{class_path: Shape}, {class_path: Ring, init_args: {hoel: 1}}]"],
            "--scene.shapes: Ring has no argument hoel; did you mean hole?",
        ),
        (
            ["--scene.shapes=[{class_path: Shape}, {class_path: Ring, init_args: {hole: many}}]"],
            "--scene.shapes: expected int, got 'many'",
        ),
        (["--config={depth: deep}"], "--config: depth: expected int, got 'deep'"),
        ([f"--scene.shapes={RING('hole: 2')}"], f"--scene.shapes: {MISPLACED}"),
        ([f"--scene.shapes=[Shape, {RING('hole: 2, init_args: {size: 2}')}]"], f"--scene.shapes: {MISPLACED}"),
        ([f"--config={{scene: {{shapes: [{RING('hole: 2')}]}}}}"], f"--config: scene.shapes: {MISPLACED}"),
        ([f"--config={{pen: {{ink: {RING('hole: 2')}}}}}"], f"--config: pen.ink: {MISPLACED}"),
        (
            ["--scene.shapes={hole: 2, class_path: Ring, size: 1}"],
            "--scene.shapes: put hole and size below init_args of Ring",
        ),
        (
            [f"--scene.shapes={RING('init_arg: {hole: 2}')}"],
            "--scene.shapes: init_arg is unknown; did you mean init_args?",
        ),
        (
            ["--scene.shapes={class_path: Rign, hole: 2}"],
            "--scene.shapes: there is no class Rign; did you mean {module}.Ring?",
        ),
        (
            [f"--config={{pen: {{ink: {RING('init_args: {hoel: 2}')}}}}}"],
            "--config: pen.ink.init_args.hoel: Ring has no argument hoel; did you mean hole?",
        ),
        (["--pen.ink.class_path=Rign"], "--pen.ink.class_path: there is no class Rign; did you mean {module}.Ring?"),
        (["--pen.ink.init_args.hole=2"], "--pen.ink.init_args.hole comes before its class: name that with --pen.ink"),
        (["--pen.tip=[0.9]"], "--pen.tip: expected list[float] of length 2, got [0.9]"),
        (["--pen.tip=0.9"], "--pen.tip: expected list[float] of length 2, got 0.9"),
        (["--pen.tip=[0.9, thin]"], "--pen.tip: expected float, got 'thin'"),
        (["--scene.shapes=0.9"], "--scene.shapes: expected list[Shape], Shape or null, got 0.9"),
    ],
)
def test_one_sentence(parser, args, sentence):
    assert refused(parser, *args) == sentence.format(module=Ring.__module__)


def test_every_misspelt_key_is_named_with_the_right_one(parser):
    """A letter left out, doubled or two exchanged, of every option at every depth."""
    draw = random.Random(0)
    for key in ("depth", "scene.title", "scene.shapes.colour", "scene.shapes.init_args.colour", "scene.frame.width"):
        stem, _, name = key.rpartition(".")
        place = draw.randrange(1, len(name) - 1)
        for wrong in (
            name[:place] + name[place + 1 :],
            name[:place] + name[place] + name[place:],
            name[:place] + name[place + 1] + name[place] + name[place + 2 :],
        ):
            full = f"--{stem}.{wrong}" if stem else f"--{wrong}"
            sentence = refused(parser, f"{full}=3")
            assert sentence.startswith(full)
            assert sentence.endswith((f"did you mean {name}?", f"did you mean --{key}?")), sentence


def test_a_line_of_a_file_is_named(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.yaml").write_text(
        "depth: 3\nscene:\n  shapes:\n  - class_path: Shape\n    init_args:\n      size: big"
    )
    assert (
        refused(parser, "--config=scene.yaml")
        == "scene.yaml, line 6: scene.shapes.init_args.size: expected float, got 'big'"
    )


def test_the_line_is_that_of_the_misplaced_key(parser, tmp_path, monkeypatch):
    """The same key, rightly below ``init_args``, stands above it and on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.yaml").write_text(
        "scene:\n  shapes:\n  - class_path: Shape\n    init_args:\n      size: 2\n  - class_path: Ring\n    size: 2"
    )
    sentence = "scene.yaml, line 7: scene.shapes: put size below init_args of Ring"
    assert refused(parser, "--config=scene.yaml", "--scene.shapes.size=2") == sentence


def test_a_jsonargparse_with_other_insides_is_quoted_on_one_line(parser, monkeypatch):
    """Its frames are read by the names of their variables, which are its own."""
    monkeypatch.setattr("eigenscope.cli.errors.parse_errors.refusal", lambda error: {}["val"])
    assert refused(parser, "--depth=two").startswith("Parser key \"depth\": Expected a <class 'int'>. Got value: two")


def test_the_options_of_a_command_line():
    args = ["fit", "--a=1", "--b", "2", "-c", "x.yaml", "--config=y.yaml", "--flag"]
    assert options(args) == [("--a", "1"), ("--b", "2"), ("-c", "x.yaml"), ("--config", "y.yaml"), ("--flag", "")]
    assert config_values(args) == ["x.yaml", "y.yaml"]
    assert options([]) == []


def test_the_place_with_the_refused_value_is_chosen(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("items:\n- {name: one, init_args: {rate: 1}}\n- {name: two, init_args: {rate: x}}\n")
    key = ["items", "init_args", "rate"]
    assert origin([key], "x", ["--config", str(file)]) == f"{file}, line 3: items.init_args.rate"
    assert origin([key], "y", ["--config", str(file)]) == f"{file}, line 2: items.init_args.rate"
    assert origin([key], "y", ["--items.rate=y", "--config", str(file)]) == "--items.rate"
    assert origin([key], "x", ["--items.rate=y", "--config", str(file)]) == f"{file}, line 3: items.init_args.rate"
    assert origin([key], "x", []) == "items.init_args.rate"
    assert origin([["a", "class_path"], ["a"]], "Foo", ["--a", "Foo"]) == "--a"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (int | float, "float"),
        (bool | int | None, "bool, int or null"),
        (Literal["a", "b"] | Literal["c", "b"] | None, "a, b, c or null"),
        (list[int] | None, "list[int] or null"),
        (tuple[float, ...], "list[float]"),
        (tuple[int | float, ...], "list[float]"),
        (tuple[float, float], "list[float] of length 2"),
        (tuple[int | None, int | None], "list[int | null] of length 2"),
        (tuple[str, int], "[str, int]"),
        (tuple[int], "list[int] of length 1"),
        (tuple[()], "an empty list"),
        (float | torch.Tensor, "float"),
        (torch.Tensor | None, "Tensor or null"),
        (dict[str, int], "a mapping"),
        (list[Shape], "list[Shape]"),
        (Shape | None, "Shape or null"),
        (Callable[[Iterable[Any]], torch.optim.Optimizer], "a subclass of Optimizer"),
    ],
)
def test_annotations_in_words(annotation, words):
    assert in_words(annotation) == words


def test_classes_and_choices_of_annotations():
    assert classes(list[Shape] | Shape | None | int | str) == [Shape]
    assert classes(Callable[[int], Shape | Frame]) == [Shape, Frame]
    assert classes(int | None) == []
    assert choices(Literal[64, "32"] | None) == ["64", "32"]


def test_the_nearest_name():
    assert nearest("hihg", ["highest", "high", "medium"]) == "high"
    assert nearest("deit", ["HookPoint", "DeiT"]) == "DeiT"
    assert nearest("x", []) is None
    names = ["".join(random.Random(seed).choices(string.ascii_lowercase, k=9)) for seed in range(30)]
    for name in names:
        assert nearest(name, names) == name
        assert nearest(name[:4] + name[5:], names) == name


def test_the_nearest_key_replaces_the_first_unknown_part():
    known = ["model", "trainer", "trainer.max_epochs", "trainer.min_epochs", "data"]
    assert nearest_key("trainer.max_epoch", known)[:2] == ("trainer.max_epoch", "trainer.max_epochs")
    assert nearest_key("modle.init_args.net", known)[:2] == ("modle", "model")
    assert nearest_key("max_epochs", known)[:2] == ("max_epochs", "trainer.max_epochs")
    assert nearest_key("zzz", known) == ("zzz", None, ["data", "model", "trainer"])
    assert nearest_key("trainer.zzz", known)[2] == ["max_epochs", "min_epochs"]


def test_lists_and_hints():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"], "or") == "a, b or c"
    assert hint("a", ["b"], "known are") == "; did you mean a?"
    assert hint(None, ["a", "b"], "known are") == "; known are a and b"
    assert hint(None, [], "known are") == hint(None, [str(n) for n in range(99)], "known are") == ""


def test_classes_of_ones_own_packages_come_first():
    packages = ["eigenscope.optim"]
    annotation = Callable[[Iterable[Any]], torch.optim.Optimizer]
    own = {
        "eigenscope.optim.SOAP",
        "eigenscope.optim.REKLS",
        "eigenscope.optim.Muon",
        "eigenscope.optim.SplitOptimizer",
    }
    paths = known_classes(annotation, packages)
    assert set(paths[: len(own)]) == own
    assert "torch.optim.AdamW" in paths
    assert class_fault("SplitOptimizer", annotation, packages) is None
    name, path = "CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"
    two = f"{name} is the short name of 2 classes: give eigenscope.optim.{name} or {path}"
    assert class_fault(name, Callable[[Any], torch.optim.lr_scheduler.LRScheduler], packages) == two
    assert class_fault("torch.optim.AdamW", annotation, packages) is None
    assert class_fault("AdamW", annotation, packages) is None
    assert class_fault("sgd", annotation, packages) == "there is no class sgd; did you mean torch.optim.SGD?"
    assert (
        class_fault("NOT_THERE.Sgd", annotation, packages)
        == "there is no class NOT_THERE.Sgd; known are Muon, REKLS, SOAP and SplitOptimizer"
    )
