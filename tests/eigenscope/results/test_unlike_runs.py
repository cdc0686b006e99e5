import copy

import pytest

from eigenscope.results.environment import unlike_runs

CARD = {
    "code": {"commit": "0123456789abcdef", "clean": True},
    "versions": {"torch": "2.15.0", "numpy": "2.5.5"},
    "hardware": {"cpu": "Brand X", "cores": 2, "gpus": [{"name": "Brand Y", "memory": 1}]},
    "data": {"module": "Images", "train": "aa (10 samples)", "val": "bb (5 samples)"},
}


def changed(section, key, value):
    card = copy.deepcopy(CARD)
    card[section][key] = value
    return card


def test_like_runs_need_no_word():
    assert unlike_runs({"a": CARD, "b": copy.deepcopy(CARD)}) == []
    assert unlike_runs({"a": CARD, "b": changed("versions", "numpy", "2.0")}) == []
    assert unlike_runs({"a": CARD, "b": {}}) == []
    assert unlike_runs({}) == []


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("code", "commit", None, "commit: 0123456789ab (a, c); unknown (b)"),
        ("versions", "torch", "2.11.0", "torch: 2.15.0 (a, c); 2.11.0 (b)"),
        ("hardware", "gpus", [], "hardware: Brand X + Brand Y (a, c); Brand X (b)"),
        ("hardware", "cpu", "Brand Z", "hardware: Brand X + Brand Y (a, c); Brand Z + Brand Y (b)"),
        ("data", "train", "cc (10 samples)", "train cc (10 samples), val bb (5 samples) (b)"),
    ],
)
def test_what_differs_is_said(section, key, value, said):
    (sentence,) = unlike_runs({"a": CARD, "b": changed(section, key, value), "c": CARD})
    assert sentence.startswith("Warning: these runs were not made with the same ")
    assert sentence.endswith(said)
