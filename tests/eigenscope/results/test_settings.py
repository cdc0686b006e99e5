import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenscope.results.settings import flat_settings, is_same, setting_text, short_names, what_differs

CONFIG = {
    "seed_everything": 3,
    "model": {
        "class_path": "a.Model",
        "init_args": {
            "net": {"class_path": "b.Net", "init_args": {"width": 8}, "dict_kwargs": {"depth": 2}},
            "lr": None,
        },
    },
    "data": {"class_path": "a.Data", "init_args": {"root": "x", "num_workers": 4, "size": [1, 2]}},
    "trainer": {
        "logger": {"class_path": "L"},
        "accelerator": "cpu",
        "max_epochs": 2,
        "callbacks": [
            {"class_path": "a.Watch", "init_args": {"every": 1}},
            {"class_path": "a.Act", "init_args": {"by": {"M": {"weight": 1.0}}}},
            {"class_path": "a.Act"},
        ],
    },
    "ckpt_path": "somewhere",
    "warm_start": None,
}


def test_settings_are_what_the_result_depends_on():
    assert flat_settings(CONFIG, watching={"Watch"}) == {
        "seed": 3,
        "model": "Model",
        "model.net": "Net",
        "model.net.width": 8,
        "model.net.depth": 2,
        "model.lr": None,
        "data": "Data",
        "data.size": [1, 2],
        "trainer.max_epochs": 2,
        "trainer.callbacks.Act": True,
        "trainer.callbacks.Act.by.M.weight": 1.0,
        "trainer.callbacks.Act#": True,
    }


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)


@given(st.sets(NAMES, min_size=1))
def test_a_short_name_is_the_shortest_end_that_no_other_has(paths):
    short = short_names(paths, paths)
    assert len(set(short.values())) == len(paths)
    for path, name in short.items():
        assert f".{path}".endswith(f".{name}")
        shorter = name.partition(".")[2]
        assert not shorter or any(f".{other}".endswith(f".{shorter}") for other in paths - {path})


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.none()), st.floats())
def test_numbers_keep_their_value(value, other):
    text = setting_text(value)
    if isinstance(value, float):
        assert is_same(float(text), value)
        assert is_same(value, other) or text != setting_text(other) or (value == 0 == other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-3, "1e-3"),
        (0.05, "0.05"),
        (4.0, "4.0"),
        (2.5e-4, "2.5e-4"),
        (1e20, "1e20"),
        ([1, 0.5, "x"], "[1, 0.5, x]"),
        ({"layers": [1, 2], "norm": None}, "{layers: [1, 2], norm: null}"),
        ({"class_path": "a.B", "init_args": {"c": 1}}, "B(c=1)"),
    ],
)
def test_values_as_people_write_them(value, text):
    assert setting_text(value) == text


def test_long_values_stay_different():
    one, other = [*range(30)], [*range(15), 99, *range(16, 30)]
    assert len(setting_text(one)) <= 32
    assert setting_text(one) != setting_text(other)


def test_what_runs_do_not_share():
    runs = [{"a.lr": 1, "b.lr": 1, "x": 0}, {"a.lr": 2, "b.lr": 1, "x": 0}, {"a.lr": 1, "b.lr": 1}]
    assert what_differs(runs) == [["a.lr=1", "x=0"], ["a.lr=2", "x=0"], ["a.lr=1", "x=–"]]
    assert what_differs([{"trainer.limit_val_batches": 1}, {"trainer.limit_val_batches": 1.0}]) == [
        ["limit_val_batches=1"],
        ["limit_val_batches=1.0"],
    ]
