import pytest
import torch
from torch import nn

from eigenscope.optim import SOAP, SplitOptimizer
from eigenscope.optim.eigenbases.tracked_parameters import check_comparable, tracked_parameters


def module():
    net = nn.ModuleDict(
        {name: nn.Linear(*shape) for name, shape in {"a": (4, 6), "b": (8, 8), "c": (6, 4), "head": (9, 9)}.items()}
    )
    return nn.ModuleDict({"net": net})


def split(net):
    return SplitOptimizer(
        list(net.named_parameters()), matrix=lambda p: SOAP(p), other=lambda p: torch.optim.AdamW(p), exclude=["head.*"]
    )


def chosen(patterns=None, largest=4):
    tested = module()
    found = tracked_parameters(tested.named_parameters(), [split(tested["net"])], patterns, largest)
    for name, watched in found.items():
        assert watched.parameter is tested["net"].get_parameter(name)
        assert watched.optimizer is watched.outer.matrix
    return list(found)


def test_the_largest_come_first_and_of_equal_ones_the_first():
    assert chosen() == ["b.weight", "a.weight", "c.weight"]
    assert chosen(largest=2) == ["b.weight", "a.weight"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["a.weight"], ["a.weight"]),
        (["net.c.weight", "net.a*"], ["a.weight", "c.weight"]),
        (["*"], ["a.weight", "b.weight", "c.weight"]),
        (["[bc].*"], ["b.weight", "c.weight"]),
    ],
)
def test_patterns_with_and_without_net(patterns, names):
    assert chosen(patterns) == names


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a.*", "d.*"], r"'d\.\*' matches no parameter; there are a.weight, .* and 5 more"),
        (["head.weight"], r"'head.weight' is head.weight, for .* trained by AdamW; factors are kept for a.weight, "),
        (["a.weight", "*.bias"], r"'\*\.bias' is a.bias, b.bias, c.bias and 1 more, .* trained by AdamW"),
    ],
)
def test_patterns_that_find_nothing_are_named(patterns, message):
    with pytest.raises(ValueError, match=message):
        chosen(patterns)


def test_a_frozen_parameter_is_trained_by_none():
    tested = module()
    optimizer = SOAP([tested["net"]["a"].weight])
    with pytest.raises(ValueError, match=r"'b.weight' is b.weight, .* trained by no optimizer"):
        tracked_parameters(tested.named_parameters(), [optimizer], ["b.weight"])


def test_several_optimizers_are_looked_through():
    tested = module()
    adam, soap = torch.optim.AdamW(tested["net"]["b"].parameters()), SOAP([tested["net"]["a"].weight])
    found = tracked_parameters(tested.named_parameters(), [adam, soap])
    assert {name: watched.outer for name, watched in found.items()} == {"a.weight": soap}
    assert tracked_parameters(tested.named_parameters(), [adam]) == {}


def test_names_stay_long_where_short_ones_would_be_alike():
    tested = nn.ModuleDict({"net": nn.ModuleDict({"a": nn.Linear(3, 3, bias=False)}), "a": nn.Linear(4, 4, bias=False)})
    found = tracked_parameters(tested.named_parameters(), [SOAP(list(tested.parameters()))])
    assert list(found) == ["a.weight", "net.a.weight"]


def test_what_cannot_be_compared_is_named():
    tested = module()
    optimizers = [SOAP([tested["net"]["a"].weight]), SOAP([tested["net"]["b"].weight])]
    found = tracked_parameters(tested.named_parameters(), optimizers)
    with pytest.raises(ValueError, match=r"one optimizer, choose among b.weight \(SOAP\), a.weight \(SOAP\)"):
        check_comparable(found, 1)
    found = tracked_parameters(tested.named_parameters(), optimizers, ["a.*"])
    check_comparable(found, 4)
    with pytest.raises(ValueError, match=r"k must be at most 4, the smaller dimension of a.weight \(6, 4\), got 5"):
        check_comparable(found, 5)
