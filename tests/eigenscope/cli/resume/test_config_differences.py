import copy
import random
from dataclasses import dataclass

import pytest
from lightning.pytorch import Callback, Trainer

from eigenscope import callbacks
from eigenscope.cli.resume.config_differences import (
    ABSENT,
    FREE,
    Difference,
    callback_changes,
    contradictions,
    differences,
)

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.999]}}


@dataclass
class Task:
    length: int
    width: int = 4


class Owner:
    def __init__(self, task: Task | None = None, root: str = "here", sides: tuple[int, int] = (1, 2)) -> None:
        self.task = task

    def other(self) -> None: ...


class Heir(Owner):
    def __init__(self, seed: int = 3, **options) -> None:
        super().__init__(**options)


def configuration(**trainer):
    return {
        "seed_everything": 0,
        "finite_guard": {"policy": "stop"},
        "model": {"class_path": "Module", "init_args": {"net": {"class_path": "Net", "init_args": {"width": 8}}}},
        "data": {"class_path": "Data", "init_args": {"batch_size": 8, "num_workers": 0, "root": "a"}},
        "trainer": {"max_epochs": 1, "precision": None, "logger": {"class_path": "Board"}, "callbacks": None} | trainer,
        "ckpt_path": None,
    }


def paths(saved, now, **options):
    return [difference.path for difference in differences(saved, now, **options)]


def test_a_difference_is_a_line_with_both_values():
    saved = {"model": {"init_args": {"optimizer": ADAMW}}}
    now = {"model": {"init_args": {"optimizer": {"class_path": "eigenscope.optim.SOAP"}}}}
    (found,) = differences(saved, now)
    place = "model.init_args.optimizer.class_path"
    assert str(found) == f"{place}: checkpoint torch.optim.AdamW, now eigenscope.optim.SOAP"
    assert str(Difference("a.b", 0.1, None)) == "a.b: checkpoint 0.1, now None"
    assert str(Difference("a", "", ABSENT)) == "a: checkpoint '', now absent"
    assert str(Difference("a", ABSENT, ADAMW)) == "a: checkpoint absent, now torch.optim.AdamW"


@pytest.mark.parametrize(
    "option", ["limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval"]
)
def test_one_batch_is_not_all_of_them(option):
    (found,) = contradictions(configuration(**{option: 1.0}), configuration(**{option: 1}))
    assert str(found) == f"trainer.{option}: checkpoint 1.0, now 1"
    assert contradictions(configuration(**{option: 1}), configuration(**{option: 1})) == []
    assert contradictions(configuration(gradient_clip_val=1.0), configuration(gradient_clip_val=1)) == []


@pytest.mark.parametrize(("one", "other", "same"), [(None, "32-true", True), (16, "16-mixed", True), (None, 64, False)])
def test_a_precision_has_several_names(one, other, same):
    found = contradictions(configuration(precision=one), configuration(precision=other))
    assert [difference.path for difference in found] == ([] if same else ["trainer.precision"])


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def random_tree(draw, depth):
    if depth == 0 or draw.random() < 0.2:
        return draw.choice([None, True, 3, 0.5, "word", [1, 2], [], float("inf")])
    return {f"k{number}": random_tree(draw, depth - 1) for number in range(draw.randint(1, 4))}


@pytest.mark.parametrize("seed", range(20))
def test_exactly_what_was_changed_is_found(seed):
    draw = random.Random(seed)
    saved = {"top": random_tree(draw, 4)}
    assert differences(saved, copy.deepcopy(saved)) == []
    now = copy.deepcopy(saved)
    places = list(leaves(saved))
    changed = draw.sample(places, k=min(3, len(places)))
    for *way, last in changed:
        part = now
        for key in way:
            part = part[key]
        part[last] = "changed"
    assert sorted(paths(saved, now)) == sorted(".".join(place) for place in changed)
    assert sorted(paths(now, saved)) == sorted(".".join(place) for place in changed)


def test_values_are_compared_as_plain_ones():
    assert differences({"a": (1, 2), "b": Task(1)}, {"a": [1, 2], "b": {"length": 1, "width": 4}}) == []
    assert differences({"a": 1, "b": float("nan")}, {"a": 1.0, "b": float("nan")}) == []
    assert paths({"a": [1, 2]}, {"a": [1, 2, 3]}) == ["a"]
    assert paths({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}, {"x": 3}]}) == ["a.1.x"]


def test_what_is_absent_is_what_it_would_be_by_default():
    assert differences({"a": None}, {}) == differences({}, {"a": None}) == []
    more = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "amsgrad": False, "weight_decay": 0.01}}
    assert differences(ADAMW, more) == differences(more, ADAMW) == []
    more["init_args"]["amsgrad"] = True
    assert differences(ADAMW, more) == [Difference("init_args.amsgrad", False, True)]
    unknown = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "nothing": 5}}
    assert differences(unknown, ADAMW) == [Difference("init_args.nothing", 5, ABSENT)]
    assert differences({"class_path": "no.Such"}, {"class_path": "no.Such", "init_args": {}}) == []


def test_defaults_of_sections_of_bases_and_of_dataclasses_are_known():
    assert (
        differences({"trainer": {}}, {"trainer": {"check_val_every_n_epoch": 1}}, sections={"trainer": Trainer}) == []
    )
    assert paths({"trainer": {}}, {"trainer": {"check_val_every_n_epoch": 2}}, sections={"trainer": Trainer}) == [
        "trainer.check_val_every_n_epoch"
    ]
    kinds = {"part": Heir}
    full = {"seed": 3, "root": "here", "sides": [1, 2], "task": {"length": 7, "width": 4}}
    assert differences({"part": {"task": {"length": 7}}}, {"part": full}, sections=kinds) == []
    assert paths({"part": {}}, {"part": full | {"root": "there"}}, sections=kinds) == ["part.root", "part.task"]
    other = full | {"task": {"length": 7, "width": 5}}
    assert paths({"part": {"task": {"length": 7}}}, {"part": other}, sections=kinds) == ["part.task.width"]


def test_of_two_classes_the_arguments_that_both_state_are_compared():
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2, "momentum": 0.9}}
    assert paths(ADAMW, sgd) == ["class_path", "init_args.lr"]
    assert paths(ADAMW, {"class_path": "torch.optim.SGD"}) == ["class_path"]


def test_what_is_free_may_differ_and_all_else_may_not():
    saved = configuration()
    for path in (path for free in FREE.values() for path in free):
        now = copy.deepcopy(saved)
        *way, last = path.split(".")
        part = now
        for key in way:
            part = part[key]
        part[last] = {"policy": "skip"} if path == "finite_guard" else "changed"
        assert contradictions(saved, now) == [], path
    for key, value in {"precision": "16-mixed", "gradient_clip_val": 1.0, "limit_train_batches": 2, "new": 5}.items():
        assert [d.path for d in contradictions(saved, configuration(**{key: value}))] == [f"trainer.{key}"]


def test_of_the_trainer_exactly_these_options_are_free():
    options = [path.removeprefix("trainer.") for free in FREE.values() for path in free if path.startswith("trainer.")]
    assert set(options) == {
        *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
        *("accelerator", "devices", "num_nodes", "strategy", "default_root_dir", "model_registry"),
        *("logger", "log_every_n_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        *("enable_autolog_hparams", "profiler", "detect_anomaly", "fast_dev_run", "num_sanity_val_steps"),
    }


def test_callbacks_that_affect_training_may_not_change_and_others_may():
    def cv(weight):
        return {"class_path": "eigenscope.callbacks.CVLossSchedule", "init_args": {"weight": weight}}

    table, checkpoint = (
        {"class_path": name}
        for name in ("eigenscope.callbacks.EpochTable", "lightning.pytorch.callbacks.ModelCheckpoint")
    )
    saved = configuration(callbacks=[table, cv(1)])
    assert contradictions(saved, configuration(callbacks=[cv(1), checkpoint])) == []
    assert contradictions(saved, configuration(callbacks=cv(1))) == []
    (found,) = contradictions(saved, configuration(callbacks=[table, cv(2)]))
    assert str(found) == "trainer.callbacks.CVLossSchedule.init_args.weight: checkpoint 1, now 2"
    (found,) = contradictions(saved, configuration())
    assert str(found) == "trainer.callbacks.CVLossSchedule: checkpoint eigenscope.callbacks.CVLossSchedule, now absent"
    assert [d.path for d in contradictions(saved, configuration(callbacks=[cv(1), cv(3)]))] == [
        "trainer.callbacks.CVLossSchedule#2"
    ]


def test_callbacks_that_may_differ_are_one_line():
    def checkpoint(monitor):
        return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": monitor}}

    table, cv, gone = (
        {"class_path": name}
        for name in ("eigenscope.callbacks.EpochTable", "eigenscope.callbacks.CVLossSchedule", "no_such.Callback")
    )
    saved = configuration(callbacks=[gone, cv, checkpoint("a")])
    now = configuration(callbacks=[checkpoint("b"), table, table])
    assert callback_changes(saved, now) == (
        "Callbacks differ from the checkpoint's: Callback removed, ModelCheckpoint changed (monitor), "
        "EpochTable added, EpochTable#2 added."
    )
    assert callback_changes(saved, configuration(callbacks=[checkpoint("a"), gone])) is None
    found = contradictions(
        saved, configuration(callbacks=[cv, checkpoint("a")]), affecting=["Callback", "CVLossSchedule"]
    )
    assert [difference.path for difference in found] == ["trainer.callbacks.Callback"]


def test_a_subclass_affects_training_as_its_base_does(monkeypatch):
    class Gentle(callbacks.CVLossSchedule):
        affects_training = False

    class Schedule(callbacks.CVLossSchedule): ...

    for kind in (Gentle, Schedule):
        monkeypatch.setattr(callbacks, kind.__name__, kind, raising=False)
    found = [
        contradictions(configuration(), configuration(callbacks=[{"class_path": f"eigenscope.callbacks.{name}"}]))
        for name in ("Gentle", "Schedule")
    ]
    assert [len(each) for each in found] == [0, 1]


def test_every_callback_says_whether_it_affects_training():
    kinds = [kind for kind in map(callbacks.__dict__.get, callbacks.__all__) if isinstance(kind, type)]
    said = {kind.__name__: getattr(kind, "affects_training", None) for kind in kinds if issubclass(kind, Callback)}
    assert {name for name, affects in said.items() if affects is None} == set()
    assert {name for name, affects in said.items() if affects} == {"CVLossSchedule", "ImplantPolicy"}
