import pytest
import torch

from eigenscope.kv import ScoreAwareCodec, TransformCodec, bits_per_element, relative_error


def turned(decay: float, *shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    d = shape[-1]
    basis = torch.linalg.qr(torch.randn(shape[-3], d, d, generator=generator)).Q
    return (torch.randn(*shape, generator=generator) * torch.arange(1, d + 1) ** (-decay / 2)) @ basis


def score_error(queries: torch.Tensor, X: torch.Tensor, decoded: torch.Tensor) -> float:
    return float(relative_error(queries @ X.mT, queries @ decoded.mT, dim=None))


def decoded_by(codec: TransformCodec, X: torch.Tensor, **calibration: torch.Tensor) -> tuple[torch.Tensor, float]:
    state = codec.fit(X, **calibration)
    code = codec.encode(X, state)
    return codec.decode(code, state), bits_per_element(X.numel(), code, state)


@pytest.mark.parametrize("bits", [1.0, 2.0])
def test_scores_are_more_accurate_at_equal_bytes_where_queries_look_elsewhere(bits):
    K, Q = turned(1.8, 2, 2048, 64, seed=0), turned(1.8, 2, 1024, 64, seed=1)
    seen, later = Q.split(512, -2)
    plain, plain_bits = decoded_by(TransformCodec(bits_per_element=bits), K)
    aware, aware_bits = decoded_by(ScoreAwareCodec(bits_per_element=bits), K, queries=seen)
    assert abs(plain_bits - aware_bits) < 0.03
    assert score_error(later, K, aware) < 0.75 * score_error(later, K, plain)
    assert relative_error(K, aware, dim=None) > relative_error(K, plain, dim=None)


@pytest.mark.parametrize("error", [0.3, 0.1, 0.03])
def test_an_error_asked_for_is_that_of_scores(error):
    K, Q = turned(1.0, 2, 2048, 32, seed=0), turned(1.0, 2, 512, 32, seed=1)
    aware, _ = decoded_by(ScoreAwareCodec(error=error, ridge=1e-5), K, queries=Q)
    assert 0.85 * error < score_error(Q, K, aware) < 1.05 * error


def test_white_queries_ask_for_what_keys_are():
    K = turned(1.5, 2, 1024, 16, seed=0)
    Q = torch.linalg.qr(torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))).Q
    aware, _ = decoded_by(ScoreAwareCodec(error=0.1), K, queries=Q)
    plain, _ = decoded_by(TransformCodec(error=0.1), K)
    assert float(relative_error(K, aware, dim=None)) == pytest.approx(
        float(relative_error(K, plain, dim=None)), rel=0.05
    )


def test_queries_that_leave_directions_out_and_zero_queries_work():
    K = turned(1.0, 2, 512, 16, seed=0)
    Q = turned(1.0, 2, 64, 16, seed=1)
    Q = Q - Q @ torch.ones(16, 16) / 16  # one direction no query looks at
    aware, _ = decoded_by(ScoreAwareCodec(error=0.1), K, queries=Q)
    assert score_error(Q, K, aware) < 0.12
    nowhere, _ = decoded_by(ScoreAwareCodec(error=0.1), K, queries=torch.zeros_like(Q))
    assert relative_error(K, nowhere, dim=None) < 0.12


def test_a_ridge_keeps_more_of_what_no_query_looks_at():
    K, Q = turned(1.0, 2, 1024, 32, seed=0), turned(3.0, 2, 512, 32, seed=1)
    wrong = [
        float(relative_error(K, decoded_by(ScoreAwareCodec(bits_per_element=2.5, ridge=r), K, queries=Q)[0], None))
        for r in (1e-5, 1e-1, 1)
    ]
    assert wrong[0] > wrong[1] > wrong[2]


def test_query_heads_that_share_a_key_head_are_pooled_in_order():
    K = turned(1.0, 1, 2, 512, 16, seed=0)
    Q = torch.cat([turned(1.5, 3, 1, 64, 16, seed=seed) for seed in range(6)], 1)  # another batch, three to a key head
    codec = ScoreAwareCodec(bits_per_element=3)
    together = codec.fit(K, queries=Q)
    pooled = codec.fit(K, queries=torch.stack([Q[:, :3].reshape(-1, 16), Q[:, 3:].reshape(-1, 16)]))
    torch.testing.assert_close(together.scale, pooled.scale, rtol=0.02, atol=0)
    decoded, pooled_too = (codec.decode(codec.encode(K, state), state) for state in (together, pooled))
    torch.testing.assert_close(decoded, pooled_too, atol=0.02, rtol=0)
    swapped = codec.fit(K, queries=Q.roll(3, 1))
    wrong = relative_error(decoded, codec.decode(codec.encode(K, swapped), swapped), dim=None)
    assert wrong > 0.02


def test_tokens_that_attention_looks_at_are_kept_better():
    X = torch.cat([turned(1.5, 2, 256, 32, seed=0), turned(1.5, 2, 256, 32, seed=1)], -2)
    weights = torch.cat([torch.full((2, 256), 0.02), torch.full((2, 256), 0.98)], -1)
    plain, _ = decoded_by(TransformCodec(bits_per_element=2), X)
    aware, _ = decoded_by(ScoreAwareCodec(bits_per_element=2), X, weights=weights)

    def error(decoded: torch.Tensor, part: slice) -> float:
        return float(relative_error(X[:, part], decoded[:, part], dim=None))

    seen, unseen = slice(256, None), slice(256)
    assert error(aware, seen) < 0.9 * error(plain, seen)
    assert error(aware, unseen) > error(plain, unseen)
    even, _ = decoded_by(ScoreAwareCodec(bits_per_element=2), X, weights=torch.full((2, 512), 7.0))
    torch.testing.assert_close(even, plain, atol=1e-4, rtol=0)


def test_bad_input_is_named():
    K = turned(1.0, 2, 64, 8, seed=0)
    codec = ScoreAwareCodec(bits_per_element=4)
    with pytest.raises(ValueError, match="queries or weights must be given"):
        codec.fit(K)
    for wrong in (K[..., :7], K[:1], torch.cat([K, K[:1]]), K[:, :0], K[0]):
        with pytest.raises(ValueError, match=r"queries must be \(\*batch"):
            codec.fit(K, queries=wrong)
    with pytest.raises(ValueError, match="queries must be floating and finite"):
        codec.fit(K, queries=K / 0)
    with pytest.raises(ValueError, match=r"weights must be floating, \(\*batch"):
        codec.fit(K, weights=torch.ones(2, 63))
    with pytest.raises(ValueError, match="weights must be finite and >= 0"):
        codec.fit(K, weights=-torch.ones(2, 64))
    with pytest.raises(ValueError, match="weights must not be all zero"):
        codec.fit(K, weights=torch.tensor([[1.0], [0.0]]).expand(2, 64))
    for ridge in (0.0, 1.1):
        with pytest.raises(ValueError, match="ridge must be from"):
            ScoreAwareCodec(bits_per_element=4, ridge=ridge)
