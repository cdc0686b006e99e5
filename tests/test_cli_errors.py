"""What a person reads who mistyped something: one sentence, exit code 2 for usage, nothing written."""

import re
import sys
from pathlib import Path

import pytest
from emerging_optimizers.soap import soap as library

from eigenscope import cli
from eigenscope.optim import soap_step

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = ["fit", "--config", str(CONFIGS / "demo.yaml")]
SOAP = ["--config", str(CONFIGS / "optimizer" / "soap.yaml")]
NET = "--model.init_args.net.init_args"
OPTIMIZER = "--model.init_args.optimizer"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(args, capsys, monkeypatch, code=2):
    """What the installed command prints for these arguments, and ends with."""
    monkeypatch.setattr(sys, "argv", ["eigenscope", *args])
    with pytest.raises(SystemExit) as stop:
        cli.script()
    captured = capsys.readouterr()
    assert captured.out == ""
    if code == 2:
        assert stop.value.code == 2
        (line,) = captured.err.splitlines()
    else:  # the interpreter prints it
        line = stop.value.code
        assert "\n" not in line
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


TYPED = [
    # subcommands
    (["fti"], "there is no subcommand fti; did you mean fit?"),
    (["comapre"], "there is no subcommand comapre; did you mean compare?"),
    ([], "a subcommand is missing: fit, validate, test, predict or compare"),
    # keys
    ([*DEMO, "--trainer.max_epoch", "3"], "--trainer.max_epoch is unknown; did you mean --trainer.max_epochs?"),
    ([*DEMO, "--trainer.max_epoch=3"], "--trainer.max_epoch is unknown; did you mean --trainer.max_epochs?"),
    ([*DEMO, "--max_epochs=3"], "--max_epochs is unknown; did you mean --trainer.max_epochs?"),
    ([*DEMO, "--modle", "DeiT"], "--modle is unknown; did you mean --model?"),
    ([*DEMO, "--modle.init_args.net=DeiT"], "--modle is unknown; did you mean --model?"),
    ([*DEMO, "extra"], "extra is not understood: options begin with --"),
    (
        [*DEMO, "--finite_guard.polcy=skip"],
        "--finite_guard.polcy is unknown; did you mean --finite_guard.policy?",
    ),
    (
        [*DEMO, f"{NET}.widht", "16"],
        f"{NET}.widht: DeiT has no argument widht; did you mean width?",
    ),
    ([*DEMO, "--model.net.widht=16"], "--model.net.widht: DeiT has no argument widht; did you mean width?"),
    (
        [*DEMO, "--model.init_args.nett.init_args.width=16"],
        "--model.init_args.nett: ImageClassificationModule has no argument nett; did you mean net?",
    ),
    (
        [*DEMO, f"{NET}.taps.layrs=[1]"],
        f"{NET}.taps.layrs: TapConfig has no argument layrs; did you mean layers?",
    ),
    (
        [*DEMO, "--data={class_path: SyntheticImagesDataModule, init_args: {batchsize: 4}}"],
        "--data: SyntheticImagesDataModule has no argument batchsize; did you mean batch_size?",
    ),
    (
        [*DEMO, "--trainer.callbacks+=EpochTable", "--trainer.callbacks.init_args.montor=3"],
        "--trainer.callbacks.init_args.montor: EpochTable has no argument montor; did you mean monitor?",
    ),
    (
        [*DEMO, *SOAP, f"{OPTIMIZER}.init_args.fp32_matmul_prec=high"],
        f"{OPTIMIZER}.init_args.fp32_matmul_prec: SplitOptimizer has no argument fp32_matmul_prec; "
        "it takes exclude, lr, matrix, max_side, other and weight_decay",
    ),
    # classes
    (
        [*DEMO, "--data.class_path", "Foo"],
        "--data.class_path: there is no class Foo; known are AssociativeRecallDataModule, CIFAR100DataModule, "
        "GradientSpikeDataModule, HeavyTailedNoiseDataModule and SyntheticImagesDataModule",
    ),
    ([*DEMO, "--model.init_args.net", "deiTT"], "--model.init_args.net: there is no class deiTT; did you mean DeiT?"),
    (
        [*DEMO, "--trainer.callbacks+=EpochTabel"],
        "--trainer.callbacks: there is no class EpochTabel; did you mean EpochTable?",
    ),
    (
        [*DEMO, "--trainer.logger", "TensorBordLogger"],
        "--trainer.logger: there is no class TensorBordLogger; "
        "did you mean lightning.pytorch.loggers.TensorBoardLogger?",
    ),
    (
        [*DEMO, OPTIMIZER, "torch.optim.AdamV"],
        f"{OPTIMIZER}: there is no class torch.optim.AdamV; did you mean torch.optim.Adam?",
    ),
    (
        [*DEMO, OPTIMIZER, "torch.optimm.SGD"],
        f"{OPTIMIZER}: there is no class torch.optimm.SGD; did you mean torch.optim.SGD?",
    ),
    ([*DEMO, f"{OPTIMIZER}.class_path=SAOP"], f"{OPTIMIZER}.class_path: there is no class SAOP; did you mean SOAP?"),
    (
        [*DEMO, OPTIMIZER, "torch.nn.Linear"],
        f"{OPTIMIZER}: torch.nn.Linear is no Optimizer; known are Muon, REKLS, SOAP and SplitOptimizer",
    ),
    (
        [*DEMO, "--trainer.strategy.class_path", "DDPStrategi"],
        "--trainer.strategy.class_path: there is no class DDPStrategi; "
        "did you mean lightning.pytorch.strategies.DDPStrategy?",
    ),
    ([*DEMO, "--model", "model.yaml"], "--model: model.yaml does not exist"),
    (
        ["fit", "--data.init_args.batch_size=4"],
        "--data.init_args.batch_size comes before its class: name that with --data (known are "
        "AssociativeRecallDataModule, CIFAR100DataModule, GradientSpikeDataModule, HeavyTailedNoiseDataModule and "
        "SyntheticImagesDataModule)",
    ),
    # values
    ([*DEMO, "--trainer.max_epochs", "abc"], "--trainer.max_epochs: expected int or null, got 'abc'"),
    ([*DEMO, "--data.init_args.batch_size", "big"], "--data.init_args.batch_size: expected int, got 'big'"),
    ([*DEMO, "--data.init_args.batch_size", "null"], "--data.init_args.batch_size: expected int, got null"),
    ([*DEMO, f"{NET}.depth=null"], f"{NET}.depth: expected int, got null"),
    ([*DEMO, f"{OPTIMIZER}.betas=0.9"], f"{OPTIMIZER}.betas: expected list[float] of length 2, got 0.9"),
    ([*DEMO, f"{NET}.dropout=much"], f"{NET}.dropout: expected float, got 'much'"),
    ([*DEMO, f"{NET}.taps.layers=one"], f"{NET}.taps.layers: expected list[int], got 'one'"),
    (
        [*DEMO, "--data.init_args.protocol", "tset"],
        "--data.init_args.protocol: expected holdout or test, got 'tset'; did you mean test?",
    ),
    (
        [*DEMO, *SOAP, f"{OPTIMIZER}.init_args.matrix.init_args.fp32_matmul_prec=hihg"],
        f"{OPTIMIZER}.init_args.matrix.init_args.fp32_matmul_prec: expected highest, high or medium, got 'hihg'; "
        "did you mean high?",
    ),
    ([*DEMO, "--trainer=5"], "--trainer: expected a mapping of options, or a file with one, got 5"),
    ([*DEMO, "--model.init_args=5"], "--model.init_args: expected a mapping of options, or a file with one, got 5"),
    ([*DEMO, "--trainer.callbacks", "[EpochTable, 5]"], "--trainer.callbacks: expected Callback, got 5"),
    ([*DEMO, "--trainer.max_epochs"], "--trainer.max_epochs: expected one argument"),
    # what is missing
    (
        ["fit", "--model=ImageClassificationModule", "--data=SyntheticImagesDataModule"],
        "model.init_args.net and model.init_args.optimizer are missing: ImageClassificationModule needs them",
    ),
    (
        ["fit", "--model=ImageClassificationModule", "--data=SyntheticImagesDataModule", "--model.init_args.net=DeiT"],
        "model.init_args.optimizer is missing: ImageClassificationModule needs it",
    ),
    # files
    (["fit", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    (["--config", "nowhere.yaml", "fit"], "nowhere.yaml does not exist"),
    (
        ["fit", "--config", f"{CONFIGS}/dmeo.yaml"],
        f"{CONFIGS}/dmeo.yaml does not exist; did you mean {CONFIGS}/demo.yaml?",
    ),
    (["fit", "--config", "."], ". is not a file"),
    (["fit", "--config", sys.executable], f"{sys.executable} is not a text file"),
    # arms
    (
        ["compare", *DEMO[1:], "--trainer.max_epoch", "3"],
        "arm demo: --trainer.max_epoch is unknown; did you mean --trainer.max_epochs?",
    ),
    (["compare"], "compare: the following arguments are required: --config"),
]


@pytest.mark.parametrize(("args", "sentence"), TYPED, ids=[" ".join(args[-2:])[-60:] for args, _ in TYPED])
def test_what_was_mistyped_is_one_sentence(tmp_path, capsys, monkeypatch, args, sentence):
    assert said(args, capsys, monkeypatch) == sentence
    assert list(tmp_path.iterdir()) == []


WRITTEN = [
    ("trainer:\n  max_epoch: 3", 2, "trainer.max_epoch is unknown; did you mean trainer.max_epochs?"),
    ("seed_everything: 1\nmodle:\n  class_path: DeiT", 2, "modle is unknown; did you mean model?"),
    ("fit:\n  trainer:\n    max_epochs: 3", 3, "fit.trainer.max_epochs is unknown; did you mean trainer.max_epochs?"),
    (
        "data:\n  init_args:\n    batchsize: 4",
        3,
        "data.init_args.batchsize: SyntheticImagesDataModule has no argument batchsize; did you mean batch_size?",
    ),
    (
        "model: {init_args: {net: {init_args: {widht: 16}}}}",
        1,
        "model.init_args.net.init_args.widht: DeiT has no argument widht; did you mean width?",
    ),
    (
        "model:\n  clas_path: ImageClassificationModule",
        2,
        "model.clas_path: ImageClassificationModule has no argument clas_path; did you mean class_path?",
    ),
    (
        "model:\n  init_arg: {lr_interval: step}",
        2,
        "model.init_arg: ImageClassificationModule has no argument init_arg; did you mean init_args?",
    ),
    (
        "trainer:\n  callbacks:\n  - class_path: Scoreboard\n    init_args:\n      show: false\n"
        "  - class_path: EpochTable\n    init_args:\n      montor: 3",
        8,
        "trainer.callbacks.init_args.montor: EpochTable has no argument montor; did you mean monitor?",
    ),
    (
        "trainer:\n  callbacks+:\n  - class_path: Scoreboard\n  - class_path: EpochTabel",
        4,
        "trainer.callbacks.class_path: there is no class EpochTabel; did you mean EpochTable?",
    ),
    (
        "trainer:\n  callbacks:\n  - Scoreboard\n  - EpochTabel",
        4,
        "trainer.callbacks: there is no class EpochTabel; did you mean EpochTable?",
    ),
    (
        "model:\n  init_args:\n    net:\n      init_args:\n        width: big",
        5,
        "model.init_args.net.init_args.width: expected int, got 'big'",
    ),
    (
        "model:\n  init_args:\n    optimizer:\n      class_path: eigenscope.optim.SOAP\n      init_args:\n"
        "        fp32_matmul_prec: hihg",
        6,
        "model.init_args.optimizer.init_args.fp32_matmul_prec: expected highest, high or medium, got 'hihg'; "
        "did you mean high?",
    ),
    (
        "trainer:\n  callbacks+:\n  - class_path: Scoreboard\n    init_args:\n      show: true\n"
        "  - class_path: EpochTable\n    show: true",
        7,
        "trainer.callbacks: put show below init_args of EpochTable",
    ),
    (
        "trainer:\n  logger:\n  - class_path: TensorBoardLogger\n    save_dir: x\n    name: y",
        4,
        "trainer.logger: put save_dir and name below init_args of TensorBoardLogger",
    ),
    (
        "trainer:\n  plugins:\n  - class_path: LightningEnvironment\n    x: 1",
        4,
        "trainer.plugins: put x below init_args of LightningEnvironment",
    ),
    (
        "model:\n  class_path: ImageClassificationModule\n  lr_interval: step\n  init_args:\n    net: DeiT",
        3,
        "model: put lr_interval below init_args of ImageClassificationModule",
    ),
    (
        "model:\n  init_args:\n    optimizer:\n      class_path: SGD\n      lr: 1",
        5,
        "model.init_args.optimizer: put lr below init_args of SGD",
    ),
    (
        "data:\n  class_path: CIFAR100DataModule\n  init_arg:\n    root: x",
        3,
        "data: init_arg is unknown; did you mean init_args?",
    ),
    (
        "model:\n  init_args:\n    optimizer:\n      init_args:\n        betas: [0.9]",
        5,
        "model.init_args.optimizer.init_args.betas: expected list[float] of length 2, got [0.9]",
    ),
    ("trainer: 5", 1, "trainer: expected a mapping of options, or a file with one, got 5"),
    ("trainer: null", 1, "trainer: expected a mapping of options, or a file with one, got null"),
    ("model:\n  init_args: 5", 2, "model.init_args: expected a mapping of options, or a file with one, got 5"),
    ("trainer:\n\tmax_epochs: 3", 2, "this is not YAML: found character '\\t' that cannot start any token"),
]


@pytest.mark.parametrize(("text", "line", "sentence"), WRITTEN, ids=[sentence[:40] for _, _, sentence in WRITTEN])
def test_what_was_miswritten_is_one_sentence_with_its_line(tmp_path, capsys, monkeypatch, text, line, sentence):
    (tmp_path / "mine.yaml").write_text(text)
    assert said([*DEMO, "--config", "mine.yaml"], capsys, monkeypatch) == f"mine.yaml, line {line}: {sentence}"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(("text", "held"), [("- 1\n- 2", "no options"), ("words", "no options"), ("", "nothing")])
def test_a_file_that_is_no_configuration(tmp_path, capsys, monkeypatch, text, held):
    (tmp_path / "mine.yaml").write_text(text)
    sentence = said([*DEMO, "--config", "mine.yaml"], capsys, monkeypatch)
    assert sentence == f"mine.yaml is not a configuration: it holds {held}"


@pytest.mark.parametrize(
    ("args", "start", "among"),
    [
        (["fit"], "data and model are missing: give --data and --model, or a --config with them (data", "; model"),
        (["fit", "--data=GradientSpikeDataModule"], "model is missing: give --model, or a --config with it", "VAEMod"),
        ([*DEMO, "--model", "Foo"], "--model: there is no class Foo; known are ", "ImageClassificationModule"),
        ([*DEMO, "--model", "EpochTable"], "--model: EpochTable is no LightningModule; known are ", "BatteryModule"),
        ([*DEMO, "--model.init_args.net=EpochTable"], "--model.init_args.net: EpochTable is no Module", "DeiT"),
        ([*DEMO, "--trainer.precision=bf15"], "--trainer.precision: expected 64, 32, ", "; did you mean bf16?"),
        ([*DEMO, "--lr=0.1"], "--lr is unknown; known are --ckpt_path, --config, --data", "--trainer"),
    ],
)  # fmt: skip
def test_what_is_allowed_is_listed(tmp_path, capsys, monkeypatch, args, start, among):
    sentence = said(args, capsys, monkeypatch)
    assert sentence.startswith(start)
    assert among in sentence
    assert list(tmp_path.iterdir()) == []


def test_the_last_of_several_places_is_named(tmp_path, capsys, monkeypatch):
    """A later file overrides an earlier one, and the command line all files."""
    (tmp_path / "first.yaml").write_text("data: {init_args: {batch_size: 4}}")
    (tmp_path / "last.yaml").write_text("data: {init_args: {batch_size: big}}")
    files = ["--config", "first.yaml", "--config", "last.yaml"]
    assert said([*DEMO, *files], capsys, monkeypatch).startswith(
        "last.yaml, line 1: data.init_args.batch_size: expected"
    )
    (tmp_path / "last.yaml").write_text("data: {init_args: {batch_size: 8}}")
    typed = said([*DEMO, *files, "--data.init_args.batch_size=big"], capsys, monkeypatch)
    assert typed == "--data.init_args.batch_size: expected int, got 'big'"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["validate", "--config", str(CONFIGS / "spike" / "soap_high.yaml")],
            "there is nothing to validate: GradientReplayModule has no validation_step",
        ),
        (
            ["fit", "--config", str(CONFIGS / "spike" / "soap_high.yaml"), "--trainer.callbacks+=EigenbasisRotation",
             "--trainer.callbacks.every_n_steps=5"],
            "trainer: Found more than one stateful callback of type `EigenbasisRotation`. In the current "
            "configuration, this callback does not support being saved alongside other instances of the same type.",
        ),
        ([*DEMO, "--trainer.accelerator=gpoo"], "You selected an invalid accelerator name: `accelerator='gpoo'`."),
        (
            [*DEMO, "--trainer.accelerator=cpu", "--trainer.devices=many"],
            "trainer: `devices` selected with `CPUAccelerator` should be an int > 0.",
        ),
    ],
)  # fmt: skip
def test_what_is_understood_but_cannot_be_is_one_sentence(tmp_path, capsys, monkeypatch, args, sentence):
    assert said(args, capsys, monkeypatch, code=1).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_what_lightning_refuses_at_the_start_is_one_sentence(monkeypatch):
    spike = ["fit", "--config", str(CONFIGS / "spike" / "soap_high.yaml"), "--trainer.enable_model_summary=false"]
    finder = ["--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.batch_arg_name=size"]
    monkeypatch.setattr(sys, "argv", ["eigenscope", *spike, *finder])
    with pytest.raises(SystemExit) as stop:
        cli.script()
    assert stop.value.code.startswith("error: Field size not found in `model`, `datamodule`")
    assert "\n" not in stop.value.code


def test_another_version_of_a_library_is_one_sentence_where_it_is_needed(monkeypatch):
    soap_step.library.cache_clear()
    monkeypatch.delattr(library, "update_kronecker_factors_kl_shampoo")
    spike = ["fit", "--config", str(CONFIGS / "spike" / "soap_high.yaml"), "--trainer.enable_model_summary=false"]
    monkeypatch.setattr(sys, "argv", ["eigenscope", *spike, "--trainer.enable_progress_bar=false"])
    with pytest.raises(SystemExit) as stop:
        cli.script()
    soap_step.library.cache_clear()
    assert re.match(
        r"error: (ImportError: )?emerging-optimizers \S+ is installed, with no \S+; eigenscope.optim needs",
        stop.value.code,
    )
