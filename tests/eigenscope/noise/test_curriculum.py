import pickle

import pytest

from eigenscope.noise import NOISE_TYPES, Curriculum


def test_fixed_epochs_of_the_reported_tiers():
    curriculum = Curriculum(epochs=[5, 8, 10, 12])
    assert curriculum.types_at(4) == (0,)
    assert curriculum.types_at(5) == (0, 4, 5, 8, 9)
    assert curriculum.types_at(11) == (0, 4, 5, 8, 9, 1, 2, 10, 11, 3, 14, 15, 7)
    assert sorted(curriculum.types_at(12)) == list(range(16)) == sorted(curriculum.types)


def test_tiers_are_unlocked_one_after_the_other():
    curriculum = Curriculum(patience=2, tiers=[["pink"], ["brown"], ["cauchy"]])
    assert [NOISE_TYPES[kind] for kind in curriculum.types_at(99)] == ["pink"]
    curriculum.unlock_next(3)
    curriculum.unlock_next(7)
    curriculum.unlock_next(8)  # nothing is left
    assert [len(curriculum.types_at(epoch)) for epoch in (2, 3, 6, 7)] == [1, 2, 2, 3]


def test_a_copy_for_another_process_is_whole():
    curriculum = Curriculum(epochs=[1], tiers=[["pink"], ["brown"]])
    assert pickle.loads(pickle.dumps(curriculum)).types_at(1) == curriculum.types_at(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either epochs or patience, got None and None"),
        ({"epochs": [1, 2, 3, 4], "patience": 1}, "either epochs or patience"),
        ({"epochs": [-1, 2, 3, 4]}, r"epochs of a curriculum must be at least 0, got \[-1, 2, 3, 4\]"),
        ({"epochs": [1, 2, 3]}, "must be 4 increasing numbers"),
        ({"epochs": [1, 3, 2, 4]}, "must be 4 increasing numbers"),
        ({"patience": 0}, "patience of a curriculum must be at least 1, got 0"),
        ({"patience": 1, "tiers": [["pink"], ["pink"]]}, "name every type once"),
        ({"patience": 1, "tiers": [["pink"], []]}, "must be non-empty"),
        ({"patience": 1, "tiers": [["punk"]]}, "punk"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**arguments)
