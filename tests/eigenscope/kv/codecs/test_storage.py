import os

import pytest
import safetensors.torch
import torch

from eigenscope.kv import (
    Exact,
    LowRankInt8,
    ScoreAwareCodec,
    TransformCodec,
    UniformInt,
    bits_per_element,
    nbytes,
    stored_tensors,
)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (Exact(), 2 * 512 * 64 * 2),
        (UniformInt(bits=4), 2 * 512 * (32 + 4)),
        (UniformInt(bits=2, axis="channel", stretch=32), 2 * 64 * (128 + 16 * 4)),
        (LowRankInt8(rank=16), 2 * (512 * 16 + 2 * 16 * 64 + 4)),
        (TransformCodec(bits_per_element=4), None),
        (ScoreAwareCodec(bits_per_element=4), None),
    ],
    ids=repr,
)
def test_bytes_reported_are_those_of_the_tensors_and_of_a_file(codec, expected, tmp_path):
    X = torch.randn(1, 2, 512, 64, generator=torch.Generator().manual_seed(0)).half()
    state = codec.fit(X, queries=X)
    code = codec.encode(X, state)
    held = nbytes(code, state)
    tensors = stored_tensors(code, state)
    assert held == sum(x.numel() * x.element_size() for x in tensors.values())
    if expected is not None:
        assert held == expected
    safetensors.torch.save_file(tensors, tmp_path / "held.safetensors")
    assert os.path.getsize(tmp_path / "held.safetensors") == pytest.approx(held, rel=0.02)


def test_a_storage_counts_once_and_whole():
    X = torch.zeros(100, dtype=torch.float32)
    assert nbytes(X[3:5]) == 400
    assert nbytes(X[:5], {"tail": (X[5:], [X])}) == 400
    assert nbytes(X, X.clone()) == 800
    assert nbytes(torch.empty(0), torch.empty(0), None, 3, "text") == 0


def test_names_lead_to_the_tensors():
    X = torch.randn(1, 2, 8, 4)
    code = Exact().encode(X, Exact().fit(X))
    named = stored_tensors({"keys": [code]}, (X,))
    assert set(named) == {"0.keys.0.X", "1.0"}
    assert named["0.keys.0.X"] is code.X


def test_bits_per_element():
    assert bits_per_element(50, torch.zeros(100, dtype=torch.int8)) == 16
    with pytest.raises(ValueError, match="elements must be at least 1"):
        bits_per_element(0, torch.zeros(1))


@pytest.mark.parametrize("tree", [object(), [torch.zeros(2), {"net": torch.nn.Linear(2, 2)}], iter([torch.zeros(2)])])
def test_what_may_hide_tensors_is_refused(tree):
    with pytest.raises(TypeError, match=r"got (object|Linear at 0\.1\.net|list_iterator)"):
        nbytes(tree)
    with pytest.raises(TypeError, match="trees must be tensors"):
        stored_tensors(tree)
    assert nbytes(torch.float16, torch.device("cpu"), torch.Size([3]), 2.5, True) == 0
