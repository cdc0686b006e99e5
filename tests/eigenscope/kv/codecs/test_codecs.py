"""What holds for every codec."""

import pickle

import pytest
import torch

from eigenscope.kv import (
    Codec,
    Exact,
    LowRankInt8,
    ScoreAwareCodec,
    TransformCodec,
    UniformInt,
    bits_per_element,
    nbytes,
    relative_error,
    stored_tensors,
)

CODECS = [
    Exact(),
    UniformInt(bits=4),
    UniformInt(bits=8, axis="channel", stretch=32),
    LowRankInt8(rank=8),
    TransformCodec(bits_per_element=3),
    TransformCodec(error=0.2),
    ScoreAwareCodec(bits_per_element=5),
]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)


def tokens(*shape: int, seed: int = 0, decay: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    d = shape[-1]
    spread = torch.arange(1, d + 1) ** (-decay / 2)
    basis = torch.linalg.qr(torch.randn(*shape[1:-2], d, d, generator=generator)).Q
    return (torch.randn(*shape, generator=generator) * spread) @ basis


def fitted_to(codec: Codec, X: torch.Tensor, groups: int = 1):
    return codec.fit(X, groups=groups, queries=X.flip(-1))


@every_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_shape_and_dtype_come_back_and_the_error_is_bounded(codec, dtype):
    X = tokens(2, 3, 100, 16).to(dtype)
    state = fitted_to(codec, X)
    code = codec.encode(X, state)
    decoded = codec.decode(code, state)
    assert decoded.dtype == dtype
    assert decoded.shape == X.shape
    assert float(relative_error(X.double(), decoded.double(), dim=None)) < 0.5
    assert state.groups == (3,)
    assert (code.tokens, code.dtype) == (100, dtype)


@every_codec
def test_half_precision_is_computed_in_float32(codec):
    X = tokens(1, 2, 64, 16).bfloat16()
    exact = X.float()
    state, state32 = fitted_to(codec, X), fitted_to(codec, exact)
    decoded = codec.decode(codec.encode(X, state), state)
    if codec in (UniformInt(bits=4), UniformInt(bits=8, axis="channel", stretch=32)):
        # These store numbers in the dtype of X, rounded as it is.
        in_float32 = codec.decode(codec.encode(exact, state32), state32)
        assert relative_error(in_float32, decoded.float(), dim=None) < 0.03
    else:
        assert torch.equal(decoded, codec.decode(codec.encode(exact, state32), state32).bfloat16())


@every_codec
def test_a_batch_is_each_of_its_sequences_and_blocks_are_a_batch(codec):
    X = tokens(6, 2, 40, 16)
    state = fitted_to(codec, X)
    together = codec.decode(codec.encode(X, state), state)
    for sequence, decoded in zip(X, together, strict=True):
        torch.testing.assert_close(codec.decode(codec.encode(sequence, state), state), decoded, atol=1e-5, rtol=1e-5)
    blocks = X.unflatten(0, (3, 2))
    again = codec.decode(codec.encode(blocks, state), state)
    torch.testing.assert_close(again, together.unflatten(0, (3, 2)), atol=1e-5, rtol=1e-5)


@every_codec
def test_rows_of_the_batch_are_selected_tensor_by_tensor(codec):
    X = tokens(3, 2, 40, 16)
    state = fitted_to(codec, X)
    code = codec.encode(X, state)
    decoded = codec.decode(code, state)
    beams = torch.tensor([2, 0, 0])
    reordered = code.map(lambda x: x.index_select(0, beams))
    torch.testing.assert_close(codec.decode(reordered, state), decoded[beams], atol=1e-6, rtol=1e-6)
    repeated = code.map(lambda x: x.repeat_interleave(2, 0))
    torch.testing.assert_close(codec.decode(repeated, state), decoded.repeat_interleave(2, 0), atol=1e-6, rtol=1e-6)


@every_codec
def test_codes_own_compact_memory_and_outlive_their_input(codec):
    X = tokens(2, 3, 70, 16)
    state = fitted_to(codec, X)
    code = codec.encode(X[:, :, 10:60], state)
    decoded = codec.decode(code, state)
    for tensor in stored_tensors(code, state).values():
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert not {x.data_ptr() for x in stored_tensors(code).values()} & {X.data_ptr(), X[:, :, 10:].data_ptr()}
    X.zero_()
    assert torch.equal(codec.decode(code, state), decoded)


@every_codec
def test_layers_and_heads_are_groups_and_bytes_are_told_apart(codec):
    X = tokens(2, 3, 4, 48, 16) * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None]
    state = fitted_to(codec, X, groups=2)
    code = codec.encode(X, state)
    assert state.groups == (3, 4)
    decoded = codec.decode(code, state)
    assert (relative_error(X.movedim(1, 0).flatten(1), decoded.movedim(1, 0).flatten(1), dim=-1) < 0.5).all()
    by_group = codec.bytes_by_group(code, state)
    assert by_group.shape == (3, 4)
    assert float(by_group.sum()) == pytest.approx(nbytes(code, state), rel=1e-12)
    for layer in range(3):  # layers do not share a budget
        alone = fitted_to(codec, X[:, layer])
        held = nbytes(codec.encode(X[:, layer], alone), alone)
        assert float(by_group[layer].sum()) == pytest.approx(held, abs=40)


@every_codec
def test_no_dimension_of_groups_is_one_matrix_for_all(codec):
    X = tokens(2, 60, 16)
    state = fitted_to(codec, X, groups=0)
    assert state.groups == ()
    decoded = codec.decode(codec.encode(X, state), state)
    assert relative_error(X, decoded, dim=None) < 0.5
    assert codec.bytes_by_group(codec.encode(X, state), state).shape == ()


@pytest.mark.parametrize(
    "codec",
    [
        *(Exact(), UniformInt(4), UniformInt(4, "channel", 3), LowRankInt8(1)),
        *(TransformCodec(bits_per_element=400), TransformCodec(error=0.3), ScoreAwareCodec(bits_per_element=800)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 8), (1, 2, 9, 1), (1, 2, 8, 8), (1, 1, 3, 20)])
def test_small_constant_zero_and_extreme_blocks_are_finite(codec, shape):
    normal = tokens(*shape)
    for X in (torch.zeros(shape), torch.full(shape, 3.3), normal, 1e-25 * normal, 1e25 * normal, normal.half() * 6e4):
        X = X.clamp(torch.finfo(X.dtype).min, torch.finfo(X.dtype).max)
        state = fitted_to(codec, X)
        decoded = codec.decode(codec.encode(X, state), state)
        assert decoded.isfinite().all()
        if not X.any():
            assert not decoded.any()


@every_codec
@pytest.mark.parametrize(("value", "name"), [(torch.nan, "NaN"), (torch.inf, "inf")])
def test_entries_that_are_not_finite_are_named(codec, value, name):
    X = tokens(1, 2, 40, 16)
    state = fitted_to(codec, X)
    X[0, 1, 7, 3] = value
    with pytest.raises(ValueError, match=f"X must be finite, got {name}"):
        codec.encode(X, state)
    with pytest.raises(ValueError, match=f"X must be finite, got {name}"):
        codec.fit(X, queries=torch.ones_like(X))


@every_codec
@pytest.mark.parametrize("shape", [(1, 3, 40, 16), (1, 2, 40, 15), (40, 16), (1, 2, 2, 40, 16, 1)])
def test_a_state_of_other_shapes_is_refused(codec, shape):
    state = fitted_to(codec, tokens(1, 2, 40, 16))
    with pytest.raises(ValueError, match=r"groups \(2,\) and d = 16.*got shape"):
        codec.encode(torch.ones(shape), state)


@every_codec
def test_what_is_no_tokens_is_refused(codec):
    for X, groups in ((torch.ones(3, 4), 1), (torch.ones(1, 0, 4), 1), (torch.ones(2, 3, 4).long(), 1)):
        with pytest.raises(ValueError, match="X must be floating"):
            codec.fit(X, groups=groups)
    with pytest.raises(ValueError, match="groups must be at least 0"):
        codec.fit(torch.ones(2, 2), groups=-1)


@every_codec
def test_options_are_values_that_pickle(codec):
    assert pickle.loads(pickle.dumps(codec)) == codec


def test_codes_and_states_of_other_codecs_are_refused():
    X = tokens(1, 2, 40, 16)
    held = {codec: (codec.encode(X, fitted_to(codec, X)), fitted_to(codec, X)) for codec in CODECS}
    for codec in CODECS:
        for other in CODECS:
            if type(held[codec][0]) is type(held[other][0]):
                continue
            with pytest.raises(ValueError, match="must be"):
                codec.factors(held[other][0], held[codec][1])
    with pytest.raises(ValueError, match="fitted must be"):
        TransformCodec(error=0.1).encode(X, held[Exact()][1])


@every_codec
def test_gradients_are_not_recorded(codec):
    X = tokens(1, 2, 40, 16).requires_grad_()
    state = fitted_to(codec, X)
    assert not codec.decode(codec.encode(X, state), state).requires_grad
    assert not any(x.requires_grad for x in stored_tensors(codec.encode(X, state), state).values())


@every_codec
def test_bits_are_those_of_the_bytes(codec):
    X = tokens(1, 2, 40, 16)
    state = fitted_to(codec, X)
    code = codec.encode(X, state)
    assert bits_per_element(X.numel(), code, state) == 8 * nbytes(code, state) / X.numel()


@every_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_autocast_changes_nothing(codec, dtype):
    X = tokens(1, 2, 64, 16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        state = fitted_to(codec, X)
        code = codec.encode(X, state)
        factors = codec.factors(code, state)
        decoded = [codec.decode(code, state), factors.multiplied()]
    plain_state = fitted_to(codec, X)
    plain_code = codec.encode(X, plain_state)
    plain_factors = codec.factors(plain_code, plain_state)
    plain = [codec.decode(plain_code, plain_state), plain_factors.multiplied()]
    held = stored_tensors(state, code, factors, decoded)
    expected = stored_tensors(plain_state, plain_code, plain_factors, plain)
    assert held.keys() == expected.keys()
    for name, tensor in held.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (TransformCodec, {"error": 0.1, "tokens": 4.5}, "tokens"),
        (ScoreAwareCodec, {"error": 0.1, "tokens": 4.0}, "tokens"),
        (LowRankInt8, {"rank": 2.5}, "rank"),
        (LowRankInt8, {"rank": True}, "rank"),
        (UniformInt, {"bits": 2.0}, "bits"),
        (UniformInt, {"stretch": 32.0}, "stretch"),
    ],
)
def test_counts_are_whole_numbers(kind, options, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got {options[name]}"):
        kind(**options)
