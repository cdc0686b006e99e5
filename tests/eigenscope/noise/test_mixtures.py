from collections import Counter
from itertools import combinations

import pytest
import torch

from eigenscope.noise import battery_mixtures, pick_from_mixtures

KINDS = ("singles", "pairs", "quads", "all")
SIZES = {"singles": 1, "pairs": 2, "quads": 4, "all": 16}


def test_kinds_come_in_turn_and_no_combination_twice_before_all_have_been():
    mixtures = battery_mixtures(512, KINDS, seed=0)
    for number, kind in enumerate(KINDS):
        own = mixtures[number::4]
        assert all(len(mixture) == SIZES[kind] == len(set(mixture)) for mixture in own)
        assert all(mixture == tuple(sorted(mixture)) for mixture in own)
    singles, pairs, quads, whole = (mixtures[number::4] for number in range(4))
    assert set(Counter(singles).values()) == {8}  # 128 of 16
    assert set(singles[:16]) == {(kind,) for kind in range(16)}
    assert set(pairs[:120]) == set(combinations(range(16), 2))
    assert len(set(quads)) == 128
    assert set(whole) == {tuple(range(16))}


def test_mixtures_are_a_function_of_the_seed():
    assert battery_mixtures(64, KINDS, seed=3) == battery_mixtures(128, KINDS, seed=3)[:64]
    assert battery_mixtures(64, KINDS, seed=3) != battery_mixtures(64, KINDS, seed=4)
    twice = battery_mixtures(30, ("singles", "pairs", "singles"), seed=0)
    assert len(set(twice[0::3] + twice[2::3])) == 16
    assert battery_mixtures(2, ("all", "pairs"), seed=0, types=(7, 3)) == ((7, 3), (7, 3))


@pytest.mark.parametrize(
    ("count", "kinds", "types", "message"),
    [
        (0, KINDS, range(16), "count must be at least 1, got 0"),
        (4, (), range(16), r"kinds must be a list of at least one of singles, pairs, quads, all, got \(\)"),
        (4, "all", range(16), "kinds must be a list .*, got 'all'"),
        (4, ("triples",), range(16), "kinds must be of singles, pairs, quads, all, got 'triples'"),
        (1, ("all", "quads"), range(3), "kinds: quads needs at least 4 types, got 3"),
        (1, ("all",), (), "kinds: all needs at least 1 types, got 0"),
        (1, ("all",), (1, 1), r"types must name every type once, got \[1, 1\]"),
    ],
)
def test_bad_arguments_are_named(count, kinds, types, message):
    with pytest.raises(ValueError, match=message):
        battery_mixtures(count, kinds, 0, types)


def members(*mixtures):
    return torch.tensor([[kind in mixture for kind in range(4)] for mixture in mixtures])


def test_images_are_picked_from_the_mixture_without_repetition():
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    own = members((0,), (1, 2), (0, 1, 2, 3), (3,), (1,))
    seen = Counter()
    for key in range(300):
        places, fitting = pick_from_mixtures(labels, own, 3, key)
        assert places.shape == fitting.shape == (5, 3)
        assert all(len(set(row)) == 3 for row in places.tolist())
        assert fitting.sum(1).tolist() == [3, 3, 3, 0, 2]
        assert torch.equal(fitting, own.gather(1, labels[places]))
        seen.update(places[0].tolist())
    assert set(seen) == {0, 3, 6, 7}
    assert max(seen.values()) - min(seen.values()) < 60  # of 225


def test_a_batterys_draw_does_not_depend_on_the_others():
    labels = torch.arange(4).repeat(8)
    own = members((0, 1), (2,), (1, 3))
    places, _ = pick_from_mixtures(labels, own, 2, key=5)
    again, _ = pick_from_mixtures(labels, own[:2], 2, key=5)
    other, _ = pick_from_mixtures(labels, own, 2, key=6)
    assert torch.equal(places[:2], again)
    assert not torch.equal(places, other)


@pytest.mark.parametrize("count", [0, 5])
def test_more_images_than_there_are_cannot_be_picked(count):
    with pytest.raises(ValueError, match=f"images_per_battery must be in 1 to 4, the images of the batch, got {count}"):
        pick_from_mixtures(torch.arange(4), members((0,)), count, 0)
