"""Files and options in any order: the configuration of the canonical order, or a sentence."""

from itertools import permutations, product
from pathlib import Path

import pytest
import yaml

from eigenscope import cli
from eigenscope.cli.errors.config_order import ConfigOrderError, check_order, said_of_order
from eigenscope.cli.errors.config_sources import sources
from eigenscope.cli.errors.parser import UsageError
from eigenscope.cli.errors.without_effect import without_effect

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
EXPERIMENTS = [path for path in FILES if "data" in yaml.safe_load(path.read_text())]
OVERLAYS = [path for path in FILES if path not in EXPERIMENTS]
DEMO, SMALL = CONFIGS / "demo.yaml", CONFIGS / "svae_noise_small.yaml"


def given(*parts):
    return [arg for part in parts for arg in (["--config", str(part)] if isinstance(part, Path) else [part])]


def refused(*parts):
    with pytest.raises(UsageError) as error:
        cli.resolve(given(*parts))
    return str(error.value)


def test_every_order_of_an_experiment_and_overlays_is_the_canonical_one_or_a_sentence():
    """An overlay before its experiment is refused where that sets the same; two overlays are refused, said or apart."""
    source = {path: sources(given(path), "fit")[0] for path in FILES}
    same = []
    for experiment, (one, two) in product(EXPERIMENTS, permutations(OVERLAYS, 2)):
        for order in ((one, experiment), (one, experiment, two), (one, two, experiment), (experiment, one, two)):
            found = [source[path] for path in order]
            try:
                check_order(found)
            except ConfigOrderError as error:
                assert any(str(path) in str(error) for path in (one, two))  # noqa: PT017  of thousands
                continue
            if len(order) == 2 and order not in same:
                same.append(order)
            if order[0] == experiment and one.parent == two.parent == CONFIGS / "implant":
                assert "net.source" in said_of_order(found)[0]
    assert not same


def test_a_file_that_says_nothing_of_what_the_experiment_says_may_stand_before_it(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("trainer: {min_epochs: 2, max_epochs: 8}")
    assert cli.resolve(given(mine, DEMO)) == cli.resolve(given(DEMO, mine))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((CONFIGS / "cv/align_hand.yaml", SMALL), "align_hand.yaml stands before --config"),
        ((CONFIGS / "optimizer/soap.yaml", DEMO), "soap.yaml stands before --config"),
        (("--trainer.max_epochs=3", DEMO), "--trainer.max_epochs stands before --config"),
        ((DEMO, CONFIGS / "optimizer/soap.yaml", CONFIGS / "optimizer/muon.yaml"), "contradict each other"),
        ((DEMO, CONFIGS / "optimizer/muon.yaml", CONFIGS / "optimizer/adamw.yaml"), "contradict each other"),
        ((DEMO, SMALL), "are whole experiments, each with a model and data of its own"),
        ((CONFIGS / "optimizer/soap.yaml",), "changes parts of an experiment, of which none is given"),
        ((CONFIGS / "cv/align_hand.yaml",), "changes parts of an experiment, of which none is given"),
        ((DEMO, "--trainer.callbacks+=LearningRateMonitor"), f"arguments (--config {DEMO} and --trainer.callbacks)"),
        (
            (DEMO, "--model.init_args.optimizer.init_args.betas=[0.9,0.9]", "--model.init_args.optimizer=SGD"),
            "--model.init_args.optimizer.init_args.betas would be dropped: --model.init_args.optimizer after it",
        ),
        ((CONFIGS / "implant/random.yaml", CONFIGS / "vae_implanted.yaml"), "random.yaml stands before --config"),
        ((DEMO, CONFIGS / "implant/random.yaml"), "DeiT has no argument source"),
    ],
)
def test_what_would_be_undone_is_refused(parts, sentence):
    assert sentence in refused(*parts)


def test_a_list_that_another_file_replaces_is_refused_after_an_overlay_and_said_after_an_experiment(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("trainer: {callbacks: [{class_path: EpochTable}]}")
    assert "contradict each other" in refused(SMALL, CONFIGS / "cv/align_hand.yaml", mine)
    for replacing in (mine, "--trainer.callbacks=EpochTable"):
        (line,) = said_of_order(sources(given(DEMO, replacing), "fit"))
        assert "so that Scoreboard, LearningRateMonitor, ModelCheckpoint and ResumeCheckpoint are left out" in line
    lines = said_of_order(sources(given(DEMO, CONFIGS / "callbacks/kv_check.yaml", "--trainer.callbacks=null"), "fit"))
    assert ["KVCacheCompression is left out" in line for line in lines] == [False, True]
    assert not said_of_order(sources(given(DEMO, "--trainer.callbacks+=EpochTable", "--trainer.max_epochs=3"), "fit"))


def test_options_of_several_callbacks_are_told_apart():
    ends = [end for name in "ab" for end in ("+=ModelCheckpoint", f".init_args.monitor={name}")]
    options = [f"--trainer.callbacks{end}" for end in ends]
    assert not said_of_order(sources(given(DEMO, *options), "fit"))
    twice = said_of_order(sources(given(DEMO, "--trainer.max_epochs=2", "--trainer.max_epochs=3"), "fit"))
    assert twice == ["--trainer.max_epochs is given twice: trainer.max_epochs 2 becomes 3"]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--trainer.limit_val_batches=0"], "no epoch is validated, because trainer.limit_val_batches is 0"),
        (
            ["--trainer.check_val_every_n_epoch=9"],
            "no epoch is validated, because trainer.check_val_every_n",
        ),
        (["--trainer.min_epochs=9"], "trainer.min_epochs 9 has no effect"),
        (["--trainer.max_epochs=0"], "trainer.max_epochs is 0: nothing is trained"),
        (
            ["--trainer.gradient_clip_algorithm=norm", "--trainer.gradient_clip_val=0"],
            "trainer.gradient_clip_algorithm has no effect",
        ),
        (["--finite_guard.max_skipped=3"], "finite_guard.max_skipped has no effect: finite_guard.policy is stop"),
        (["--trainer.default_root_dir=x"], "trainer.default_root_dir x has no effect: the logger writes to runs"),
        (["--trainer.limit_predict_batches=1"], "trainer.limit_predict_batches has no effect in fit"),
        ([], None),
    ],
)
def test_an_option_without_effect_is_said(options, note):
    config = cli.resolve(given(DEMO, *options))
    keys = {key for source in sources(given(DEMO, *options), "fit") for key in source.settings}
    notes = without_effect(config, keys)
    assert [line.startswith(note) for line in notes] == [True] if note else not notes
