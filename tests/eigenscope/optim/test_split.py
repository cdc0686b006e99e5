import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from eigenscope.nn import BatteryArray
from eigenscope.optim import REKLS, SOAP, Muon, SplitOptimizer

NAMES = {"matrix": {"0.weight", "2.weight"}, "other": {"0.bias", "1.weight", "1.bias", "2.bias", "head.weight"}}


class Network(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 6)).to(dtype)
            self.head = nn.Linear(6, 3, bias=False, dtype=dtype)

    def forward(self, x):
        return self.head(self.body(x).tanh())

    def named(self):
        return [(name.removeprefix("body."), parameter) for name, parameter in self.named_parameters()]


def batches(count, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(7, 5, generator=generator).to(dtype) for _ in range(count)]


def loss_of(network, x):
    return network(x).square().mean()


def train(network, optimizer, data):
    for x in data:
        optimizer.zero_grad()
        loss_of(network, x).backward()
        optimizer.step()


def split(network, matrix=SOAP, other=AdamW, **arguments):
    return SplitOptimizer(network.named(), matrix, other, **arguments)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def tensors(optimizer):
    return [v for s in optimizer.state_dict()["state"].values() for v in s.values() if isinstance(v, torch.Tensor)]


PAIRS = [
    (SOAP, AdamW),
    (partial(REKLS, lr=0.03), partial(AdamW, lr=0.05, fused=True)),
    (Muon, partial(Adam, foreach=True)),
    (partial(SGD, lr=0.1, momentum=0.9), AdamW),
]


@pytest.mark.parametrize(("matrix", "other"), PAIRS)
def test_steps_as_two_optimizers_by_hand(matrix, other):
    one, two = Network(), Network()
    together = split(one, matrix, other)
    apart = [
        kind([(name, parameter) for name, parameter in two.named() if name in NAMES[side]])
        for kind, side in ((matrix, "matrix"), (other, "other"))
    ]
    for x in batches(4):

        def closure(x=x):
            together.zero_grad()
            loss = loss_of(one, x)
            loss.backward()
            return loss

        with torch.no_grad():
            loss = together.step(closure)
        for optimizer in apart:
            optimizer.zero_grad()
        expected = loss_of(two, x)
        expected.backward()
        for optimizer in apart:
            optimizer.step()
        assert torch.equal(loss, expected)
    assert not equal(one, Network())
    assert equal(one, two)


def test_routes_say_where_and_why():
    network = Network()
    network.wide = nn.Linear(9, 2)
    optimizer = split(network, exclude=["2.*"], max_side=8)
    assert {route.name: route[1:] for route in optimizer.routes} == {
        "0.weight": ((8, 5), "SOAP", "matrix"),
        "0.bias": ((8,), "AdamW", "1-D"),
        "1.weight": ((8,), "AdamW", "1-D"),
        "1.bias": ((8,), "AdamW", "1-D"),
        "2.weight": ((6, 8), "AdamW", "excluded by 2.*"),
        "2.bias": ((6,), "AdamW", "1-D"),
        "head.weight": ((3, 6), "SOAP", "matrix"),
        "wide.weight": ((2, 9), "AdamW", "a side over 8"),
        "wide.bias": ((2,), "AdamW", "1-D"),
    }
    for part, name in ((optimizer.matrix, "SOAP"), (optimizer.other, "AdamW")):
        own = {member for group in part.param_groups for member in group["param_names"]}
        assert own == {route.name for route in optimizer.routes if route.optimizer == name}


def test_groups_and_states_are_those_of_both():
    network = Network()
    optimizer = split(network)

    def check():
        groups = [*optimizer.matrix.param_groups, *optimizer.other.param_groups]
        assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
        for part in (optimizer.matrix, optimizer.other):
            for parameter, state in part.state.items():
                assert optimizer.state[parameter] is state
        assert len(optimizer.state) == len(list(optimizer.state)) == len(list(network.parameters()))

    assert len(optimizer.state) == 0
    assert optimizer.state.get(network.head.weight) is None
    assert network.head.weight not in optimizer.other.state
    train(network, optimizer, batches(1))
    check()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    check()
    optimizer.state[network.head.weight] = {}
    assert optimizer.other.state[network.head.weight] == {}
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    before = copy.deepcopy(network)
    del optimizer.state[network.head.weight]
    train(network, optimizer, batches(1))
    assert equal(network, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("matrix", "other"), PAIRS)
def test_a_loaded_state_goes_on_bit_for_bit(matrix, other, dtype, tmp_path):
    network = Network(dtype)
    optimizer = split(network, matrix, other)
    train(network, optimizer, batches(3, dtype=dtype))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = copy.deepcopy(network)
    resumed = split(twin, matrix, other, lr=7.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    saved = tensors(optimizer)
    assert [x.dtype for x in tensors(resumed)] == [x.dtype for x in saved]
    assert all(torch.equal(a, b) for a, b in zip(tensors(resumed), saved, strict=True))
    train(network, optimizer, batches(3, 2, dtype))
    train(twin, resumed, batches(3, 2, dtype))
    assert equal(network, twin)


def test_state_of_another_dtype_than_its_weight_keeps_it():
    network = Network(torch.bfloat16)
    optimizer = split(network)
    train(network, optimizer, batches(1, dtype=torch.bfloat16))
    bias = network.body[0].bias
    optimizer.state[bias]["exp_avg"] = torch.rand(8, generator=torch.Generator().manual_seed(1))
    resumed = split(network)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(resumed.state[bias]["exp_avg"], optimizer.state[bias]["exp_avg"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_steps_alike(copied):
    network = Network()
    optimizer = split(network)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # which patches its step
    train(network, optimizer, batches(2))
    twin, of_twin = copied((network, optimizer))
    train(network, optimizer, batches(2, 3))
    train(twin, of_twin, batches(2, 3))
    assert of_twin.routes == optimizer.routes
    assert equal(network, twin)
    with pytest.raises(ValueError, match="cannot be added"):
        of_twin.add_param_group({"params": []})


def test_another_routing_is_not_loaded():
    network = Network()
    optimizer = split(network)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"another routing: 2.weight \(2.weight went to SOAP, here to AdamW\)"):
        split(network, exclude=["2.*", "head.*"]).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"another routing: 0.weight, 2.weight \(0.weight went to SOAP, here to Muon"):
        split(network, matrix=Muon).load_state_dict(saved)
    smaller = SplitOptimizer([pair for pair in network.named() if pair[0] != "2.bias"], SOAP, AdamW)
    with pytest.raises(ValueError, match=r"lacks none, has in excess 2.bias"):
        smaller.load_state_dict(saved)
    with pytest.raises(ValueError, match="other groups or in another order"):
        SplitOptimizer(reversed(network.named()), SOAP, AdamW).load_state_dict(saved)
    with pytest.raises(ValueError, match="must be a SplitOptimizer's"):
        optimizer.load_state_dict(AdamW(network.parameters()).state_dict())


def test_one_rate_and_decay_for_both_or_each_its_own():
    network = Network()
    own = split(network, partial(SOAP, lr=0.1, weight_decay=0.2), partial(AdamW, lr=0.3, weight_decay=0.4))
    assert [(group["lr"], group["weight_decay"]) for group in own.param_groups] == [(0.1, 0.2), (0.3, 0.4)]
    both = split(network, partial(SOAP, lr=0.1), partial(AdamW, lr=0.3), lr=0.5, weight_decay=0.0)
    assert [(group["lr"], group["weight_decay"]) for group in both.param_groups] == [(0.5, 0.0)] * 2
    assert (both.defaults["lr"], both.defaults["weight_decay"]) == (0.5, 0.0)
    with pytest.raises(ValueError, match="weight_decay is set for both optimizers, but LBFGS has no such option"):
        split(network, other=torch.optim.LBFGS, weight_decay=0.1)


def test_groups_keep_their_options():
    network = Network()
    first, second = network.named()[:3], network.named()[3:]
    groups = [{"params": first, "lr": 0.1}, {"params": second, "name": "late"}]
    optimizer = SplitOptimizer(groups, SOAP, AdamW, lr=0.5)
    described = [(group["name"], group["lr"], group["param_names"]) for group in optimizer.param_groups]
    assert described == [
        ("matrix/0", 0.1, ["0.weight"]),
        ("matrix/late", 0.5, ["2.weight"]),
        ("other/0", 0.1, ["0.bias", "1.weight"]),
        ("other/late", 0.5, ["1.bias", "2.bias", "head.weight"]),
    ]
    train(network, optimizer, batches(1))
    assert groups == [{"params": first, "lr": 0.1}, {"params": second, "name": "late"}]


def test_nothing_but_matrices_needs_no_other_optimizer():
    network = Network()
    named = [pair for pair in network.named() if pair[0] in NAMES["matrix"]]
    optimizer = SplitOptimizer(named, SOAP, AdamW)
    assert optimizer.other is None
    train(network, optimizer, batches(2))
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == 2


def test_a_split_may_be_split_again():
    network = Network()
    inner = partial(SplitOptimizer, matrix=Muon, other=AdamW, exclude=[])
    optimizer = split(network, SOAP, inner, exclude=["2.weight", "head.weight"])
    assert {route.name: route.optimizer for route in optimizer.other.routes}["head.weight"] == "Muon"
    assert [group["name"] for group in optimizer.param_groups] == ["matrix", "other/matrix", "other/other"]
    train(network, optimizer, batches(2))
    twin = copy.deepcopy(network)
    resumed = split(twin, SOAP, inner, exclude=["2.weight", "head.weight"])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(network, optimizer, batches(2, 4))
    train(twin, resumed, batches(2, 4))
    assert equal(network, twin)


def test_gains_and_biases_of_stacked_networks_are_no_matrices():
    with pytest.raises(ValueError, match=r"params must have a matrix .*3-D: encoder.0.weight \(2, 8, 48\)"):
        SplitOptimizer(BatteryArray(2, hidden=8).named_parameters(), SOAP, AdamW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": ["tail.*", "*bias", "foot"]}, r"exclude must match .* tail.\*, foot matches none of: 0.weight"),
        ({"exclude": "head.*"}, "exclude must be a list of patterns"),
        ({"exclude": ["*"]}, r"must have a matrix .*got excluded by \*: 0.weight \(8, 5\), 2.weight .*; 1-D: 0.bias"),
        ({"max_side": 0}, "max_side must be at least 1 or None, got 0"),
        ({"lr": -1.0}, "lr must be a finite number >= 0 or None, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number >= 0 or None, got nan"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        split(Network(), **arguments)


def test_wrong_parameters_are_named():
    network = Network()
    with pytest.raises(ValueError, match=r"params must be pairs \(name, parameter\)"):
        SplitOptimizer(network.parameters(), SOAP, AdamW)
    with pytest.raises(ValueError, match=r"params must be pairs"):
        SplitOptimizer([{"params": network.parameters()}], SOAP, AdamW)
    with pytest.raises(ValueError, match=r"got 0.weight twice"):
        SplitOptimizer([*network.named(), network.named()[0]], SOAP, AdamW)
    with pytest.raises(ValueError, match="more than one parameter group"):
        SplitOptimizer([*network.named(), ("head.again", network.body[0].weight)], SOAP, AdamW)
    with pytest.raises(ValueError, match="params must have a matrix for the optimizer `matrix`, got nothing"):
        SplitOptimizer([], SOAP, AdamW)
    with pytest.raises(ValueError, match="param_group cannot be added"):
        split(network).add_param_group({"params": [("more", nn.Parameter(torch.ones(2, 2)))]})
