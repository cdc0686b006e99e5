import torch
from torch import nn

from eigenscope.results.parameter_counts import Counts, count, count_parts


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 5))
        self.register_buffer("steps", torch.zeros(3))
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 2, bias=False).requires_grad_(False)
        self.activation = nn.ReLU()


class Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.loss = nn.MSELoss()


def test_parts_of_the_network_inside_a_module():
    parts = {
        "positions": Counts(5, 0, 0),
        "steps": Counts(0, 0, 3),
        "body": Counts(9 + 6, 0, 7),  # running mean, variance and a count
        "head": Counts(0, 6, 0),
    }
    assert count_parts(Net()) == parts
    assert count_parts(Training()) == {f"net.{name}": counts for name, counts in parts.items()}
    assert count(Training()) == Counts(20, 6, 10)


def test_several_networks_are_the_parts():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 3), "decoder": nn.Linear(3, 2)})
    assert count_parts(module) == {"encoder": Counts(9, 0, 0), "decoder": Counts(8, 0, 0)}


def test_shared_weights_count_once():
    module = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)})
    module["b"].weight = module["a"].weight
    assert count(module) == Counts(6 + 3 + 3, 0, 0)


def test_nothing_to_count():
    assert count(nn.ReLU()) == Counts(0, 0, 0)
    assert count_parts(nn.Sequential(nn.ReLU())) == {}
