import math

import pytest
import torch

from eigenscope.kv import attention_change, relative_error


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_relative_error_is_a_ratio_of_norms():
    X = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert float(relative_error(X, torch.zeros(2, 2))) == 1
    assert float(relative_error(X, torch.tensor([[3.0, 0.0], [0.0, 3.0]]))) == pytest.approx(0.2)
    assert relative_error(X, 2 * X, dim=-1).tolist() == [1, 1]
    many = normal(2, 3, 5, 4)
    torch.testing.assert_close(relative_error(many, 1.25 * many), torch.full((2, 3), 0.25, dtype=torch.float64))
    assert float(relative_error(many, 0.5 * many, dim=None)) == pytest.approx(0.5)
    zero = torch.zeros(2, 2)
    assert relative_error(torch.stack([zero, zero]), torch.stack([zero, X])).tolist() == [0, math.inf]
    assert float(relative_error(X.half() * 1e4, X.half() * 1.5e4)) == pytest.approx(0.5, rel=1e-3)
    assert float(relative_error(X * 1e-30, X * 2e-30)) == pytest.approx(1)
    with pytest.raises(ValueError, match="decoded must be of the shape of exact"):
        relative_error(X, X[:1])


def test_half_precision_scores_that_float16_cannot_hold():
    Q, K = 300 * normal(1, 2, 3, 64).half(), 300 * normal(1, 2, 7, 64, seed=1).half()
    V = normal(1, 2, 7, 64, seed=2).half()
    assert (Q.double() @ K.double().mT).abs().max() > torch.finfo(torch.float16).max
    assert all(x.isfinite().all() for x in attention_change(Q, (K, V), (K, V)))


def test_nothing_changes_between_equals():
    Q, K, V = normal(2, 4, 5, 8), normal(2, 2, 9, 8, seed=1), normal(2, 2, 9, 6, seed=2)
    change = attention_change(Q, (K, V), (K, V), causal=True)
    assert all(x.shape == (2, 4) for x in change)
    assert (change.score_rmse == 0).all()
    assert (change.attention_kl == 0).all()
    torch.testing.assert_close(change.output_cosine, torch.ones(2, 4, dtype=torch.float64))


def test_a_divergence_below_rounding_is_not_negative():
    Q, K, V = (normal(8, 2, 40, 8, seed=seed).float() for seed in range(3))
    change = attention_change(Q, (K, V), (K * (1 + 1e-6), V))
    assert (change.attention_kl >= 0).all()
    assert (change.attention_kl < 1e-6).all()


def test_two_tokens_in_closed_form():
    """Scores (s, 0) against (t, 0): Bernoulli attention of p and r."""
    s, t = 1.3, -0.4
    Q = torch.tensor([[[1.0]]], dtype=torch.float64)
    K, K_hat = (torch.tensor([[[x], [0.0]]], dtype=torch.float64) for x in (s, t))
    V = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    change = attention_change(Q, (K, V), (K_hat, V))
    p, r = (1 / (1 + math.exp(-x)) for x in (s, t))
    assert float(change.score_rmse) == pytest.approx(abs(s - t) / math.sqrt(2))
    assert float(change.attention_kl) == pytest.approx(p * math.log(p / r) + (1 - p) * math.log((1 - p) / (1 - r)))
    cosine = (p * r + (1 - p) * (1 - r)) / math.hypot(p, 1 - p) / math.hypot(r, 1 - r)
    assert float(change.output_cosine) == pytest.approx(cosine)
    halved = attention_change(Q, (K, V), (K_hat, V), scale=0.5)
    assert float(halved.score_rmse) == pytest.approx(abs(s - t) / math.sqrt(8))


def test_by_the_book_with_a_mask_and_shared_heads():
    Q = normal(2, 4, 5, 8)
    exact, decoded = ((normal(2, 2, 9, 8, seed=s), normal(2, 2, 9, 6, seed=s + 1)) for s in (1, 3))
    mask = normal(2, 1, 5, 9, seed=5) > -0.5
    mask[0, 0, 2] = False  # a query that looks nowhere is left out
    for kind in (mask, torch.zeros(2, 1, 5, 9).masked_fill(~mask, -torch.inf)):
        change = attention_change(Q, exact, decoded, mask=kind)
        for b, h in ((0, 1), (1, 2), (1, 3)):
            rmse, kl, cosine = [], [], []
            for i in range(5):
                seen = mask[b, 0, i]
                if not seen.any():
                    continue
                scores = [K[b, h // 2][seen] @ Q[b, h, i] / math.sqrt(8) for K, _ in (exact, decoded)]
                p, r = (x.softmax(0) for x in scores)
                outputs = [a @ V[b, h // 2][seen] for a, (_, V) in zip((p, r), (exact, decoded), strict=True)]
                rmse += (scores[0] - scores[1]).square().tolist()
                kl.append(float((p * (p / r).log()).sum()))
                cosine.append(float(torch.cosine_similarity(*outputs, dim=0)))
            assert float(change.score_rmse[b, h]) == pytest.approx(math.sqrt(sum(rmse) / len(rmse)))
            assert float(change.attention_kl[b, h]) == pytest.approx(sum(kl) / len(kl))
            assert float(change.output_cosine[b, h]) == pytest.approx(sum(cosine) / len(cosine))


def test_a_key_shift_common_to_all_tokens_changes_scores_but_not_attention():
    Q, K, V = normal(1, 2, 5, 8), normal(1, 2, 9, 8, seed=1), normal(1, 2, 9, 8, seed=2)
    change = attention_change(Q, (K, V), (K + normal(8, seed=3), V))
    assert (change.score_rmse > 0.1).all()
    torch.testing.assert_close(change.attention_kl, torch.zeros(1, 2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_outputs_of_zero_and_heads_that_look_nowhere():
    Q, K, V = normal(1, 2, 3, 4), normal(1, 2, 5, 4, seed=1), normal(1, 2, 5, 4, seed=2)
    zero = torch.zeros_like(V)
    assert (attention_change(Q, (K, zero), (K, zero)).output_cosine == 1).all()
    assert (attention_change(Q, (K, V), (K, zero)).output_cosine == 0).all()
    nowhere = attention_change(Q, (K, V), (2 * K, -V), mask=torch.zeros(3, 5, dtype=torch.bool))
    assert [x.tolist() for x in nowhere] == [[[0, 0]], [[0, 0]], [[1, 1]]]


def test_shapes_that_do_not_fit_are_named():
    Q, K, V = normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    with pytest.raises(ValueError, match="decoded keys must be of the shape of exact keys"):
        attention_change(Q, (K, V), (K[:, :1], V))
    with pytest.raises(ValueError, match="decoded values must be of the shape of exact values"):
        attention_change(Q, (K, V), (K, V[..., :3]))
    for wrong in (Q[..., :3], torch.cat([Q, Q[:, :1]], 1)):
        with pytest.raises(ValueError, match="queries must have a multiple of the heads"):
            attention_change(wrong, (K, V), (K, V))


def test_autocast_changes_no_measure():
    Q, K, V = (normal(2, 3, 7, 8, seed=seed).float() for seed in range(3))
    change, error = attention_change(Q, (K, V), (1.1 * K, V + 0.1)), relative_error(K, V)
    with torch.autocast("cpu", torch.bfloat16):
        for plain, under in zip(change, attention_change(Q, (K, V), (1.1 * K, V + 0.1)), strict=True):
            assert torch.equal(plain, under)
        assert torch.equal(relative_error(K, V), error)
