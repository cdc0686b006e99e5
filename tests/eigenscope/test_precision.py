import pytest
import torch
from torch import nn
from torchmetrics import Metric

from eigenscope.adapters.torch_names import KeepsDtypes
from eigenscope.precision import has_bf16, has_tf32


def test_nothing_but_a_gpu_has_tf32():
    assert not has_tf32(torch.device("cpu"))
    assert not has_tf32(torch.device("meta"))


def test_unknown_devices_have_none():
    assert not has_bf16("meta")
    assert not has_bf16("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda_no_bf16():
    assert not has_bf16("cuda")


def test_cpu_answers_what_the_processor_says():
    try:
        with open("/proc/cpuinfo") as file:
            words = set(file.read().split())
    except OSError:
        pytest.skip("no /proc/cpuinfo to compare with")
    if not hasattr(torch.cpu, "get_capabilities"):
        assert not has_bf16("cpu")
    elif "flags" in words:  # x86
        assert has_bf16("cpu") == bool({"avx512_bf16", "amx_bf16"} & words)


class Means(KeepsDtypes, Metric):
    """As Lightning finds it: below a module that it casts."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.register_buffer("kept", torch.tensor(1 / 3))

    def update(self, value):
        self.total += value

    def compute(self):
        return self.total


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to(dtype=torch.float16),
        nn.Module.half,
        nn.Module.bfloat16,
        nn.Module.double,
        lambda module: module.to("cpu", torch.float16),
    ],
)
def test_a_cast_of_the_module_around_it_leaves_a_metric_as_it_is(cast):
    module = nn.Sequential(nn.Linear(1, 1), Means())
    linear, means = module
    means.update(1 + 2.0**-40)
    cast(module)
    assert linear.weight.dtype != torch.float32
    assert (means.total.dtype, means.kept.dtype) == (torch.float64, torch.float32)
    assert (means.total, means.kept) == (1 + 2.0**-40, torch.tensor(1 / 3))
    means.reset()
    assert means.total.dtype == torch.float64


def test_it_still_moves_to_another_device():
    module = nn.Sequential(Means()).to("meta", torch.float16)
    assert (module[0].total.device.type, module[0].kept.device.type) == ("meta", "meta")
    assert module[0].total.dtype == torch.float64
