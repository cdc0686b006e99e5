import pytest
import torch

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
