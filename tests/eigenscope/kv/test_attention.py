import math

import pytest
import torch

from eigenscope.kv import (
    Exact,
    Factors,
    LowRankInt8,
    ScoreAwareCodec,
    TransformCodec,
    UniformInt,
    attention_change,
    compressed_attention,
)

CODECS = [
    Exact(),
    UniformInt(8),
    LowRankInt8(4),
    LowRankInt8(16, quantized=False),
    TransformCodec(bits_per_element=4),
    ScoreAwareCodec(bits_per_element=6),
]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attend(Q, K, V, mask=None, scale=None):
    """By the book, head after head repeated."""
    repeats = Q.shape[-3] // K.shape[-3]
    K, V = (x.repeat_interleave(repeats, -3) for x in (K, V))
    scores = Q @ K.mT * (scale or 1 / math.sqrt(Q.shape[-1]))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ V


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2)])
def test_equals_attention_on_the_decoded_tensors(codec, repeats, batch):
    K, V = 1 + normal(*batch, 2, 40, 16), normal(*batch, 2, 40, 16, seed=1) - 1
    Q = normal(*batch, 2 * repeats, 5, 16, seed=2)
    states = codec.fit(K, queries=Q), codec.fit(V, queries=Q)
    codes = [codec.encode(X, state) for X, state in zip((K, V), states, strict=True)]
    factors = [codec.factors(code, state) for code, state in zip(codes, states, strict=True)]
    decoded = [codec.decode(code, state) for code, state in zip(codes, states, strict=True)]
    torch.testing.assert_close(compressed_attention(Q, *factors), attend(Q, *decoded), atol=1e-12, rtol=0)
    causal = torch.ones(5, 40, dtype=torch.bool).tril(35)
    torch.testing.assert_close(
        compressed_attention(Q, *factors, causal=True, scale=0.7),
        attend(Q, *decoded, mask=causal, scale=0.7),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_exact_tokens_blocks_and_a_window_follow_each_other(codec):
    K, V = normal(3, 2, 4 + 3 * 24 + 7, 16), normal(3, 2, 4 + 3 * 24 + 7, 8, seed=1)
    Q = normal(3, 4, 6, 16, seed=2)
    parts, exact = [], []
    for X in (K, V):
        first, middle, last = X.split([4, 72, 7], -2)
        blocks = middle.unflatten(-2, (3, 24)).movedim(-3, -4)
        some = codec if X is K or not isinstance(codec, LowRankInt8) else LowRankInt8(3)
        state = some.fit(blocks, queries=normal(1, 2, 30, X.shape[-1]))
        code = some.encode(blocks, state)
        parts.append([Factors(first), some.factors(code, state), Factors(last)])
        decoded = some.decode(code, state).movedim(-4, -3).flatten(-3, -2)
        exact.append(torch.cat([first, decoded, last], -2))
    mask = normal(3, 1, 6, 83, seed=3) > 0
    torch.testing.assert_close(
        compressed_attention(Q, *parts, mask=mask), attend(Q, *exact, mask=mask), atol=1e-12, rtol=0
    )


def test_masks_of_both_kinds_agree_and_a_query_that_looks_nowhere_gets_zero():
    Q, K, V = normal(2, 4, 5, 8), normal(2, 2, 9, 8, seed=1), normal(2, 2, 9, 8, seed=2)
    mask = normal(2, 1, 5, 9, seed=3) > 0
    mask[1, 0, 3] = False
    boolean = compressed_attention(Q, Factors(K), Factors(V), mask=mask)
    added = torch.zeros(2, 1, 5, 9).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(compressed_attention(Q, Factors(K), Factors(V), mask=added), boolean)
    assert (boolean[1, :, 3] == 0).all()
    assert boolean[1, :, 2].abs().min() > 0
    bias = normal(4, 5, 9, seed=4)
    weights = (Q @ K.repeat_interleave(2, 1).mT / math.sqrt(8) + bias).softmax(-1)
    expected = weights @ V.repeat_interleave(2, 1)
    torch.testing.assert_close(compressed_attention(Q, Factors(K), Factors(V), mask=bias), expected)


def test_a_later_token_does_not_change_an_earlier_output():
    Q, K, V = normal(1, 2, 6, 8), normal(1, 2, 6, 8, seed=1), normal(1, 2, 6, 8, seed=2)
    before = compressed_attention(Q, Factors(K), Factors(V), causal=True)
    K[..., 4, :], V[..., 4, :] = 50, -50
    after = compressed_attention(Q, Factors(K), Factors(V), causal=True)
    assert torch.equal(before[..., :4, :], after[..., :4, :])
    assert not torch.allclose(before[..., 4:, :], after[..., 4:, :])


def test_half_precision_scores_that_float16_cannot_hold():
    Q, K = 300 * normal(1, 2, 3, 64).half(), 300 * normal(1, 2, 7, 64, seed=1).half()
    V = normal(1, 2, 7, 64, seed=2).half()
    assert (Q.double() @ K.double().mT).abs().max() > torch.finfo(torch.float16).max
    output = compressed_attention(Q, Factors(K), Factors(V))
    assert output.dtype == torch.float16
    torch.testing.assert_close(output, attend(Q.double(), K.double(), V.double()).half(), atol=1e-3, rtol=1e-3)
    change = attention_change(Q, (K, V), (K, V))
    assert all(x.isfinite().all() for x in change)


def test_bad_input_is_named():
    Q, K, V = normal(1, 4, 3, 8), normal(1, 2, 9, 8), normal(1, 2, 9, 8)
    for keys, values in ((Factors(K), Factors(V[:, :, :8])), ([Factors(K)] * 2, Factors(V)), ([], [])):
        with pytest.raises(ValueError, match="equal numbers of tokens"):
            compressed_attention(Q, keys, values)
    with pytest.raises(ValueError, match="multiple of 2 heads"):
        compressed_attention(Q[:, :3], Factors(K), Factors(V))
    with pytest.raises(ValueError, match="keys must have 2 heads of the queries' 8 channels"):
        compressed_attention(Q, Factors(K[..., :7]), Factors(V))
    with pytest.raises(ValueError, match="causal queries must be the last of the 2 tokens"):
        compressed_attention(Q, Factors(K[:, :, :2]), Factors(V[:, :, :2]), causal=True)
    with pytest.raises(ValueError, match="blocks, heads, T, d"):
        compressed_attention(Q, Factors(K[0]), Factors(V[0]))


def test_autocast_changes_no_attention_on_codes():
    Q, K, V = (normal(2, heads, 9, 8, seed=heads, dtype=torch.float32) for heads in (4, 2, 1))
    V = V.expand(2, 2, 9, 8)
    keys, values = (Factors(X[..., :4], X[:1, :, :4], X[0, :, 0]) for X in (K, V))
    expected = compressed_attention(Q, keys, values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compressed_attention(Q, keys, values), expected)
        assert (Q @ K[:, :1].mT).dtype == torch.bfloat16
