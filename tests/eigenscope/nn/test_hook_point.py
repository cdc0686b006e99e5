import pytest
import torch
from torch import nn

from eigenscope.nn import HookPoint, attach_hooks, hook_points, observe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.middle = HookPoint()
        self.last = nn.Linear(4, 2)
        self.ends = nn.ModuleList([HookPoint(), HookPoint()])

    def forward(self, x):
        x = self.middle(self.first(x)).relu()
        for probe in self.ends:
            x = probe(x)
        return self.last(x)


def test_observes_what_runs_and_leaves_no_trace():
    net, x = Net(), torch.rand(3, 4)
    expected = net(x)
    with observe(net, "middle") as seen:
        assert seen == {}
        assert torch.equal(net(x), expected)
    torch.testing.assert_close(seen["middle"], net.first(x))
    assert seen["middle"].requires_grad
    assert all(point.hooks == () for point in hook_points(net).values())
    assert not any("middle" in name for name in net.state_dict())


def test_two_observers_do_not_disturb_each_other():
    net = Net()
    with observe(net) as outer:
        with observe(net, "ends.*", "middle") as inner:
            net(torch.rand(3, 4))
        assert set(inner) == set(outer) == {"middle", "ends.0", "ends.1"}
        inner.clear()
        net(torch.rand(3, 4))
    assert inner == {}


def test_hooks_are_removed_when_the_block_raises():
    net = Net()
    with pytest.raises(RuntimeError, match="stop"), observe(net):
        raise RuntimeError("stop")
    assert all(point.hooks == () for point in hook_points(net).values())


def test_a_hook_may_replace_the_tensor():
    net, x = Net(), torch.rand(3, 4)
    expected, names = net(x), []

    def blank(name, tensor):
        names.append(name)
        return torch.zeros_like(tensor)

    with attach_hooks(net, "middle", hook=blank):
        torch.testing.assert_close(net(x), net.last.bias.expand(3, 2))
    assert names == ["middle"]
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_survives_compilation(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = Net(), torch.rand(3, 4)
    expected = net(x)
    net.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(net(x), expected)
    for _ in range(20):  # more often than dynamo is willing to recompile
        with observe(net, "middle") as seen:
            torch.testing.assert_close(net(x), expected)
        torch.testing.assert_close(seen["middle"], net.first(x))
    assert net(x).grad_fn is not None


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="'muddle'; there are: middle, ends"):
        hook_points(Net(), "muddle")


def test_survives_ddp():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(Net())
        x = torch.rand(3, 4)
        with observe(net, "*middle") as seen:
            net(x).sum().backward()
        torch.testing.assert_close(seen["module.middle"], net.module.first(x))
    finally:
        torch.distributed.destroy_process_group()
