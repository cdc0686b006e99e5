import pytest
import torch

from eigenscope.kv import LowRankInt8, nbytes, relative_error


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.arange(1, shape[-1] + 1) ** -1.0


def through(codec: LowRankInt8, X: torch.Tensor) -> torch.Tensor:
    state = codec.fit(X)
    return codec.decode(codec.encode(X, state), state)


@pytest.mark.parametrize("rank", [1, 8, 31, 32])
def test_its_error_is_that_of_the_truncated_svd_and_of_rounding(rank):
    X = tokens(2, 3, 60, 32).double()
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    best = (U[..., :rank] * S[..., None, :rank]) @ Vh[..., :rank, :]
    optimum = (X - best).square().sum((-2, -1))
    codec = LowRankInt8(rank)
    code = codec.encode(X, codec.fit(X))
    rounding = 60 * rank * (code.scale / 2).square()  # of C; that of B adds a thousandth
    error = (X - codec.decode(code, codec.fit(X))).square().sum((-2, -1))
    assert (error <= 1.05 * (optimum + rounding)).all()
    assert (error >= 0.99 * optimum).all()


def test_codes_are_int8_with_one_scale_a_block_and_the_basis_float16():
    X = tokens(2, 3, 60, 32) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    codec = LowRankInt8(8)
    code = codec.encode(X, codec.fit(X))
    assert (code.C.dtype, code.B.dtype) == (torch.int8, torch.float16)
    assert code.scale.shape == (2, 3)
    assert (code.C.abs().amax((-2, -1)) == 127).all()
    C = X @ code.B.float().mT
    torch.testing.assert_close(code.scale, C.abs().amax((-2, -1)) / 127)
    assert ((code.C * code.scale[..., None, None] - C).abs() <= 0.501 * code.scale[..., None, None]).all()


def test_scales_that_underflow_do_not_wrap_codes():
    X = torch.full((1, 2, 1), 698 * 2.0**-149)  # 1/127 of it is five of the least steps of float32, not 5.5
    decoded = through(LowRankInt8(1), X)
    torch.testing.assert_close(decoded, X, atol=1e-43, rtol=0)


def test_a_dimension_of_blocks_has_a_basis_each():
    blocks = tokens(4, 2, 50, 16)
    together = through(LowRankInt8(4), blocks)
    alone = torch.stack([through(LowRankInt8(4), block) for block in blocks])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_large_common_mean_costs_nothing_once_it_is_removed():
    X = tokens(2, 3, 60, 32)
    mean = 100 * torch.randn(2, 3, 1, 32, generator=torch.Generator().manual_seed(1))  # of each block and head
    plain, centred = (LowRankInt8(8, centred=flag) for flag in (False, True))
    X = X - X.mean(-2, keepdim=True)
    without = relative_error(X, through(plain, X), dim=None)

    def error(codec: LowRankInt8) -> torch.Tensor:
        return (through(codec, X + mean) - mean - X).norm() / X.norm()

    torch.testing.assert_close(error(centred), without, rtol=1e-3, atol=0)
    assert error(plain) > 2 * without


def test_the_mean_is_counted_and_the_reported_form_has_none():
    X = tokens(2, 3, 60, 32)
    plain, centred = (codec.encode(X, codec.fit(X)) for codec in (LowRankInt8(8), LowRankInt8(8, centred=True)))
    assert plain.mean is None
    assert nbytes(plain) == 2 * 3 * (60 * 8 + 2 * 8 * 32 + 4)
    assert nbytes(centred) == nbytes(plain) + 2 * 3 * 4 * 32


def test_bad_ranks_are_named():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRankInt8(0)
    X = tokens(1, 20, 16)
    codec = LowRankInt8(17)
    with pytest.raises(ValueError, match=r"rank must be at most min\(T, d\) of a block, 16, got 17"):
        codec.encode(X, codec.fit(X))
    with pytest.raises(ValueError, match="10, got 17"):
        codec.encode(X[:, :10], codec.fit(X))
