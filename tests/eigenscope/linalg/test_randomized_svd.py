import math

import pytest
import torch

from eigenscope.linalg import randomized_svd
from eigenscope.linalg.randomized_svd import Method

METHODS: list[Method] = ["gram", "subspace", "reference", "auto"]
SPECTRA = ["rank k", "randn", "i^-1/2", "1/i", "2^(-i/4)"]
ROWS, COLUMNS, MATRICES = 192, 128, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def with_values(values: torch.Tensor, rows: int, columns: int, matrices: int, seed: int = 0) -> torch.Tensor:
    """Matrices of given singular values (at most min(rows, columns)) and random directions, in fp64."""
    U = torch.linalg.qr(random(matrices, rows, len(values), seed=seed)).Q
    V = torch.linalg.qr(random(matrices, columns, len(values), seed=seed + 1)).Q
    return U * values.double() @ V.mT


def spectrum(name: str, rank: int) -> torch.Tensor:
    i = torch.arange(1, COLUMNS + 1, dtype=torch.float64)
    if name == "randn":
        return random(MATRICES, ROWS, COLUMNS)
    if name == "rank k":
        low = random(MATRICES, ROWS, rank) @ random(MATRICES, rank, COLUMNS, seed=1)
        return low + 0.01 * random(MATRICES, ROWS, COLUMNS, seed=2)
    values = {"i^-1/2": i**-0.5, "1/i": 1 / i, "2^(-i/4)": 2 ** (-i / 4)}[name]
    return with_values(values, ROWS, COLUMNS, MATRICES)


def error(M: torch.Tensor, rank: int, method: Method, seed: int = 5, **options: int) -> torch.Tensor:
    """Frobenius error of the approximation of each matrix, in fp64 whatever it was computed in."""
    U, S, Vh = (factor.double() for factor in randomized_svd(M, rank, method=method, generator=seeded(seed), **options))
    return torch.linalg.matrix_norm(M.double() - U * S[..., None, :] @ Vh)


def optimum(M: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.linalg.svdvals(M.double())[..., rank:].square().sum(-1).sqrt()


def assert_orthonormal(U: torch.Tensor, Vh: torch.Tensor, atol: float) -> None:
    identity = torch.eye(U.shape[-1], dtype=U.dtype).expand(*U.shape[:-2], -1, -1)
    torch.testing.assert_close(U.mT @ U, identity, atol=atol, rtol=0)
    torch.testing.assert_close(Vh @ Vh.mT, identity, atol=atol, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-20])
@pytest.mark.parametrize("rank", [8, 16, 32])
@pytest.mark.parametrize("name", SPECTRA)
def test_error_over_the_optimum(name, rank, scale):
    M = (spectrum(name, rank) * scale).float()
    least = optimum(M, rank)
    assert (error(M, rank, "gram").square() <= (1 + 1e-3) * least.square()).all()
    reference = error(M, rank, "reference")
    for method in ("subspace", "auto"):
        found = error(M, rank, method)
        assert (found <= reference * (1 + 1e-6)).all()  # rounding, where both are the optimum
        if name in ("rank k", "1/i", "2^(-i/4)"):
            assert (found <= 1.01 * least).all()


def test_reorthogonalisation_is_what_the_reference_lacks():
    M = spectrum("2^(-i/4)", 32).float()
    assert (error(M, 32, "reference") > 2 * optimum(M, 32)).all()
    assert (error(M, 32, "reference", power_iterations=6) > error(M, 32, "reference")).all()
    wide = with_values(2 ** (-torch.arange(1, 129) / 4), 512, 500, 2).float()  # 500 > 4 · 3 · 37: through M
    for iterations in (2, 6, 20):
        assert (error(M, 32, "subspace", power_iterations=iterations) < 1.003 * optimum(M, 32)).all()
        assert (error(wide, 32, "subspace", power_iterations=iterations) < 1.003 * optimum(wide, 32)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 3, 60, 24), (2, 24, 60), (24, 24), (9, 1), (1, 9), (200, 150)])
def test_factors_in_fp64_are_those_of_the_full_svd(shape, method):
    short = min(shape[-2:])
    M = with_values(0.3 ** torch.arange(short), *shape[-2:], math.prod(shape[:-2])).reshape(shape)
    rank = min(5, short)
    U, S, Vh = randomized_svd(M, rank, method=method)
    assert (U.shape, S.shape, Vh.shape) == ((*shape[:-1], rank), (*shape[:-2], rank), (*shape[:-2], rank, shape[-1]))
    torch.testing.assert_close(S, torch.linalg.svdvals(M)[..., :rank], rtol=1e-6, atol=0)
    assert_orthonormal(U, Vh, 1e-10)
    torch.testing.assert_close(M @ Vh.mT, U * S[..., None, :], atol=1e-5, rtol=0)
    torch.testing.assert_close(U.mT @ M, S[..., None] * Vh, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (40, 180)])  # 180 > 4 · 3 · 13: through M, not its Gram matrix
@pytest.mark.parametrize("true_rank", [0, 1, 3, 8])
def test_rank_deficient_input_is_finite_and_right(true_rank, shape, scale, method):
    M = random(5, shape[0], true_rank) @ random(5, true_rank, shape[1], seed=1)
    M[1] = 0
    M[2, :, 2:] = 0  # exactly two columns
    M = (M * scale).float()
    atol = 2e-3 if method == "reference" else 1e-4  # it loses weak directions
    for matrices in (M, M[3:]):
        U, S, Vh = randomized_svd(matrices, 8, method=method, generator=seeded(1))
        assert_orthonormal(U, Vh, 1e-5)
        assert (S[..., 1:] <= S[..., :-1]).all()
        assert (S >= 0).all()
        scaled = (U * (S / scale)[..., None, :] @ Vh).double()
        torch.testing.assert_close(scaled, matrices.double() / scale, atol=atol, rtol=0)
    assert randomized_svd(M, 3, method=method).S[1].eq(0).all()


@pytest.mark.parametrize("method", METHODS)
def test_many_iterations_and_weak_directions_leave_finite_orthonormal_factors(method):
    for scale in (1.0, 1e4):
        M = scale * spectrum("2^(-i/4)", 32).float()
        U, S, Vh = randomized_svd(M, 32, method=method, power_iterations=12)
        assert_orthonormal(U, Vh, 5e-6)  # a float32 product divided by its length is off by 2^8 eps = 3e-5
        assert S.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_equal_singular_values(method):
    M = torch.linalg.qr(random(4, 30, 20, dtype=torch.float32)).Q * 2
    U, S, Vh = randomized_svd(M, 6, method=method)
    torch.testing.assert_close(S, torch.full((4, 6), 2.0))
    assert (S[..., 1:] <= S[..., :-1]).all()
    assert_orthonormal(U, Vh, 1e-5)
    torch.testing.assert_close(U.mT @ M, S[..., None] * Vh, atol=1e-5, rtol=0)


@pytest.mark.parametrize("columns", [64, 400])  # through the Gram matrix, and through M
def test_small_directions_survive(columns):
    """Down to sqrt(eps) = 3e-4 of the top, and the reference's 0.04 is far above."""
    values = torch.logspace(0, -3, 8)
    M = with_values(values, 500, columns, 3).float()
    found = randomized_svd(M, 8, method="subspace").S
    torch.testing.assert_close(found[:, -1], values[-1:].expand(3), rtol=0.05, atol=0)
    assert (randomized_svd(M, 8, method="reference", power_iterations=4).S[:, -1] < 0.9e-3).all()


@pytest.mark.parametrize(("rank", "oversampling"), [(4, 6), (10, 6), (4, 12)])
def test_expected_error_without_iterations(rank, oversampling):
    """Halko, Martinsson and Tropp's (1 + k/(p − 1))^½ × tail, which a flat, long tail under a huge head attains.

    The p columns beyond k take p of the tail's t directions out of what a draw mixes in, hence the factor 1 − p/t.
    """
    tail, draws = 120, 800
    values = torch.cat([torch.full((rank,), 1e5), torch.ones(tail)])
    M = with_values(values, 130, 130, 1).expand(draws, -1, -1)
    squares = error(M, rank, "reference", power_iterations=0, oversampling=oversampling).square() / tail
    expected = 1 + rank / (oversampling - 1) * (1 - oversampling / tail)
    assert abs(squares.mean().item() - expected) < 4 * squares.std().item() / math.sqrt(draws)
    bound = math.sqrt(1 + rank / (oversampling - 1))
    assert 0.9 * bound < squares.sqrt().mean() < bound
    better = error(M[:50], rank, "reference", power_iterations=1, oversampling=oversampling).square() / tail
    assert better.mean() < 1.001


def test_dtypes():
    M = random(2, 40, 16, dtype=torch.float32)
    for half in (torch.float16, torch.bfloat16):
        result = randomized_svd(M.to(half), 3)
        assert {factor.dtype for factor in result} == {torch.float32}
        for factor, same in zip(result, randomized_svd(M.to(half).float(), 3), strict=True):
            assert torch.equal(factor, same)
    assert {factor.dtype for factor in randomized_svd(M.double(), 3)} == {torch.float64}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = randomized_svd(M, 3)
    assert all(torch.equal(a, b) for a, b in zip(inside, randomized_svd(M, 3), strict=True))


@pytest.mark.parametrize("method", ["subspace", "reference"])
def test_draws_come_from_the_generator_alone(method):
    M = random(2, 40, 30, dtype=torch.float32)
    before = torch.get_rng_state()
    default, again = (randomized_svd(M, 4, method=method).S for _ in range(2))
    one, same, other = (randomized_svd(M, 4, method=method, generator=seeded(s)).S for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(default, again)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    generator = seeded(1)
    first, second = (randomized_svd(M, 4, method=method, generator=generator).S for _ in range(2))
    assert torch.equal(first, one)
    assert not torch.equal(first, second)


def test_options_reach_the_result():
    M = random(3, 40, 30, dtype=torch.float32)
    for method in ("subspace", "reference"):
        errors = [error(M, 4, method, oversampling=p, power_iterations=q).mean() for p, q in [(0, 0), (8, 0), (8, 3)]]
        assert errors[0] > 1.01 * errors[1] > 1.01 * 1.01 * errors[2]
    gram, subspace = (randomized_svd(M, 4, method=method).S for method in ("gram", "subspace"))
    assert not torch.equal(gram, subspace)
    assert torch.equal(randomized_svd(M, 4, method="auto").S, subspace)  # 2 · 9 <= 30
    assert torch.equal(randomized_svd(M, 11, method="auto").S, randomized_svd(M, 11, method="gram").S)


def test_empty_batch_and_no_gradient():
    U, S, Vh = randomized_svd(torch.ones(0, 6, 5), 2, method="subspace")
    assert (U.shape, S.shape, Vh.shape) == ((0, 6, 2), (0, 2), (0, 2, 5))
    M = random(6, 5).requires_grad_()
    assert not any(factor.requires_grad for factor in randomized_svd(M, 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_entry_that_is_not_finite(bad, method):
    M = random(3, 20, 16, dtype=torch.float32)
    M[1, 4, 2] = bad
    with pytest.raises(ValueError, match="M must be finite"):
        randomized_svd(M, 4, method=method)


@pytest.mark.parametrize(
    ("M", "rank", "options", "word"),
    [
        (torch.ones(3), 1, {}, "M must"),
        (torch.ones(0, 3), 1, {}, "M must"),
        (torch.ones(3, 3, dtype=torch.int64), 1, {}, "M must"),
        (torch.ones(3, 3, dtype=torch.complex64), 1, {}, "M must"),
        (torch.ones(3, 5), 0, {}, "rank must be from 1 to min.m, n. = 3, got 0"),
        (torch.ones(3, 5), 4, {}, "rank must be from 1 to min.m, n. = 3, got 4"),
        (torch.ones(3, 3), 1, {"oversampling": -1}, "oversampling must"),
        (torch.ones(3, 3), 1, {"power_iterations": -1}, "power_iterations must"),
        (torch.ones(3, 3), 1, {"method": "full"}, "method must be .*'full'"),
    ],
)
def test_bad_input(M, rank, options, word):
    with pytest.raises(ValueError, match=word):
        randomized_svd(M, rank, **options)
