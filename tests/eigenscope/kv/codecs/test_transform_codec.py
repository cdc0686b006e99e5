import dataclasses
import math

import pytest
import torch

from eigenscope.kv import (
    LowRankInt8,
    ScoreAwareCodec,
    TransformCodec,
    bits_per_element,
    nbytes,
    rate_distortion_bound,
    relative_error,
)

INDEX = torch.arange(1, 129, dtype=torch.float64)
SPECTRA = {"keys": (INDEX + 3.2) ** -1.86, "values": (INDEX + 22.5) ** -2.30}  # as published for language models


def gaussian(variances: torch.Tensor, *shape: int, seed: int = 0) -> torch.Tensor:
    """Tokens (*shape, d) of the given spectrum, in an orthonormal basis of its own for each head."""
    generator = torch.Generator().manual_seed(seed)
    d = len(variances)
    basis = torch.linalg.qr(torch.randn(shape[-2], d, d, generator=generator)).Q
    return (torch.randn(*shape, d, generator=generator) * variances.sqrt().float()) @ basis


def laplacian(*shape: int, seed: int = 0) -> torch.Tensor:
    u = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs()) / math.sqrt(2)


def coded(codec: TransformCodec, X: torch.Tensor, calibration: torch.Tensor | None = None) -> tuple[float, float]:
    """Relative error and bits per element, state included."""
    state = codec.fit(X if calibration is None else calibration)
    code = codec.encode(X, state)
    error = relative_error(X, codec.decode(code, state), dim=None)
    return float(error), bits_per_element(X.numel(), code, state)


@pytest.mark.parametrize(
    ("kind", "times", "most"), [("keys", 8.5, 0.19), ("values", 8.5, 0.29), ("keys", 12, 0.25), ("values", 12, 0.38)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_error_at_a_size_on_published_spectra(kind, times, most, seed):
    spectrum = SPECTRA[kind]
    X = gaussian(spectrum, 3, 4096, seed=seed)
    error, bits = coded(TransformCodec(bits_per_element=16 / times), X)
    assert 16 / bits >= times
    assert error <= most
    bound = float((rate_distortion_bound(spectrum, bits) / spectrum.sum()).sqrt())
    assert bound < error < 1.55 * bound


@pytest.mark.parametrize(("kind", "times", "most"), [("keys", 8.5, 0.21), ("values", 12, 0.41)])
def test_a_state_fitted_on_the_first_block_serves_the_others(kind, times, most):
    X = gaussian(SPECTRA[kind], 2, 4096)
    error, bits = coded(TransformCodec(bits_per_element=16 / times, tokens=4096), X, X[:, :512])
    assert 16 / bits >= times
    assert error <= most


@pytest.mark.parametrize(("kind", "rank"), [("keys", 16), ("values", 32)])
def test_smaller_and_more_accurate_than_the_low_rank_reference(kind, rank):
    X = gaussian(SPECTRA[kind], 2, 4096)
    blocks = X.reshape(2, 8, 512, 128).transpose(0, 1)
    reference = LowRankInt8(rank)
    state = reference.fit(blocks)
    code = reference.encode(blocks, state)
    bits = bits_per_element(X.numel(), code, state)
    assert bits == pytest.approx(16 / 512 * rank + rank / 16, rel=1e-3)
    wrong = float(relative_error(blocks, reference.decode(code, state), dim=None))
    error, fewer = coded(TransformCodec(bits_per_element=bits), X)
    assert fewer <= bits
    assert error < 0.6 * wrong


@pytest.mark.parametrize("tokens", [None, 1000, 5000])
@pytest.mark.parametrize("bits", [0.7, 2.0, 3.3])
def test_the_budget_is_met_to_within_a_plane(bits, tokens):
    X = gaussian(SPECTRA["keys"][:32], 2, 3, 200)
    codec = TransformCodec(bits_per_element=bits, tokens=tokens)
    state = codec.fit(X)
    served = 2 * 200 if tokens is None else tokens
    planes = codec.encode(X, state).planes.shape[-2]
    held = nbytes(state) + planes * served / 8  # when so many tokens are encoded
    allowed = bits * served * 3 * 32 / 8
    assert allowed - served / 8 < held <= allowed


def test_the_padding_of_blocks_is_in_the_budget():
    X = gaussian(SPECTRA["keys"][:32], 100, 3, 9)
    _, bits = coded(TransformCodec(bits_per_element=3), X)
    assert 3 - 16 / 9 / 96 < bits <= 3


def test_more_tokens_to_serve_make_directions_cheaper():
    X = gaussian(SPECTRA["keys"], 2, 256)
    few, many = (TransformCodec(bits_per_element=2, tokens=tokens).fit(X) for tokens in (256, 65536))
    assert len(few.owner) < len(many.owner)


@pytest.mark.parametrize("error", [0.5, 0.2, 0.05, 0.015])
def test_an_error_asked_for_is_what_gaussian_data_get(error):
    X = gaussian(SPECTRA["values"][:48], 2, 2048) + torch.linspace(0, 0.02, 48)
    reached, bits = coded(TransformCodec(error=error), X)
    assert 0.85 * error < reached < 1.02 * error
    if error < 0.3:
        assert reached < coded(TransformCodec(bits_per_element=bits - 0.3), X)[0]


def test_a_large_mean_costs_nothing_but_itself():
    X = gaussian(SPECTRA["keys"], 2, 1024)
    codec = TransformCodec(bits_per_element=2)
    shifted = X + 8 * torch.randn(2, 1, 128, generator=torch.Generator().manual_seed(1))
    state = codec.fit(shifted)
    wrong = shifted - codec.decode(codec.encode(shifted, state), state)
    assert float(wrong.norm() / X.norm()) == pytest.approx(coded(codec, X)[0], rel=0.05)
    zero = dataclasses.replace(state, mean=torch.zeros_like(state.mean))
    assert (shifted - codec.decode(codec.encode(shifted, state), zero)).norm() > 20 * wrong.norm()


def test_heads_share_the_budget_and_layers_do_not():
    X = gaussian(SPECTRA["keys"][:32], 2, 2, 512)
    X[:, 1] *= 3  # the second head of both layers
    X[1] *= 100  # the second layer
    codec = TransformCodec(bits_per_element=2)
    state = codec.fit(X, groups=2)
    by_group = codec.bytes_by_group(codec.encode(X, state), state)
    assert (by_group[:, 1] > 1.3 * by_group[:, 0]).all()
    assert float(by_group[0].sum()) == pytest.approx(float(by_group[1].sum()), rel=0.02)


@pytest.mark.parametrize("bits", [4.0, 6.5])
def test_scales_suit_heavy_tails(bits):
    sizes = torch.logspace(0, -0.6, 8)  # distinct variances, or the eigenbasis would mix channels to nearly Gaussian
    X = laplacian(1, 4096, 8) * sizes
    codec = TransformCodec(bits_per_element=bits)
    state = codec.fit(X)
    naive = dataclasses.replace(state, scale=sizes[: len(state.owner)].to(torch.bfloat16))
    as_deviation = float(relative_error(X, codec.decode(codec.encode(X, naive), naive), dim=None))
    assert coded(codec, X)[0] < 0.85 * as_deviation


def test_the_stored_basis_is_orthonormal_enough_for_the_highest_rate():
    X = gaussian(torch.ones(64, dtype=torch.float64), 1, 2048)
    codec = TransformCodec(bits_per_element=8.6)
    state = codec.fit(X)
    factors = codec.factors(codec.encode(X, state), state)
    torch.testing.assert_close(factors.B @ factors.B.mT, torch.eye(64)[None], atol=3e-4, rtol=0)
    assert float(relative_error(X, factors.multiplied(), dim=None)) < 1.05 * math.sqrt(4.1185e-5)


def test_tensors_that_are_held_are_small():
    X = gaussian(SPECTRA["keys"], 2, 512)
    codec = TransformCodec(bits_per_element=2)
    state = codec.fit(X)
    code = codec.encode(X, state)
    K, planes = len(state.owner), int(state.rows.sum())
    assert code.planes.shape == (planes, 64)
    assert nbytes(state) == K * (128 + 2 + 2) + 2 * 128 * 2 + 32
    assert codec.encode(X[:, :11], state).planes.shape == (planes, 2)  # padded to whole bytes


def test_bad_options_and_budgets_are_named():
    for options in ({}, {"bits_per_element": 2.0, "error": 0.1}):
        with pytest.raises(ValueError, match="either bits_per_element or error"):
            TransformCodec(**options)
    for options in ({"bits_per_element": 0.0}, {"error": -0.1}, {"error": math.nan}, {"error": 0.1, "tokens": 0}):
        with pytest.raises(ValueError, match="must be positive and finite"):
            TransformCodec(**options)
    with pytest.raises(ValueError, match="error must be below 1"):
        TransformCodec(error=1.0)
    X = gaussian(SPECTRA["keys"], 1, 64)
    least = (16 * 128 + 32 * 8 + 64 + 8 * 128 + 32) / (64 * 128)
    with pytest.raises(ValueError, match=f"bits_per_element must be at least {least:.4g}"):
        TransformCodec(bits_per_element=0.99 * least).fit(X)
    assert len(TransformCodec(bits_per_element=1.001 * least).fit(X).owner) == 1
    with pytest.raises(ValueError, match=r"error must be at least 0\.00"):
        TransformCodec(error=0.001).fit(X)


def test_many_groups_of_many_directions():
    X = torch.randn(1, 2, 550, 64, 32, generator=torch.Generator().manual_seed(0))  # 2 × 550 × 32 > 32767
    codec = TransformCodec(bits_per_element=8, tokens=100000)
    state = codec.fit(X, groups=2)
    assert len(state.owner) > 32767
    assert relative_error(X, codec.decode(codec.encode(X, state), state)).max() < 0.02


def test_more_groups_than_a_state_can_number_are_refused():
    with pytest.raises(ValueError, match=r"at most 32767 groups, got 32768 in groups \(2, 16384\)"):
        TransformCodec(bits_per_element=2, tokens=100000).fit(torch.ones(2, 16384, 1, 1), groups=2)


@pytest.mark.parametrize("kind", [TransformCodec, ScoreAwareCodec])
def test_rounding_in_calibration_data_of_low_rank_gets_no_bits(kind):
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(1, 3, 40, 128, generator=generator)
    low = torch.randn(1, 3, 400, 20, generator=generator) @ torch.randn(3, 20, 128, generator=generator)
    codec = kind(bits_per_element=7, tokens=100000)
    for X, rank in ((few, 39), (low, 20)):
        state = codec.fit(X, queries=torch.randn(1, 3, 200, 128, generator=generator))
        assert torch.bincount(state.owner.long()).tolist() == [rank] * 3
        assert float(relative_error(X, codec.decode(codec.encode(X, state), state), dim=None)) < 0.012


def test_small_variances_beside_a_large_one_are_kept():
    X = torch.randn(1, 1, 4096, 128, generator=torch.Generator().manual_seed(0))
    X[..., 0] *= 500  # 4e-6 of its variance each
    state = TransformCodec(bits_per_element=8, tokens=100000).fit(X)
    assert len(state.owner) == 128
