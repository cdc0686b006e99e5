import itertools
import math

import pytest
import torch

from eigenscope.kv import allocate_bits, rate_distortion_bound
from eigenscope.kv.codecs.bit_planes import distortions


def left(variances: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return (variances.double() * distortions()[bits]).sum(-1)


def cost(bits: torch.Tensor, plane: float, direction: float) -> torch.Tensor:
    return plane * bits.sum(-1) + direction * (bits > 0).sum(-1)


def spectrum(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


EVERY = torch.tensor(list(itertools.product(range(9), repeat=4)))


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 9, 14, 20, 31, 32, 40])
def test_where_directions_cost_nothing_it_is_the_best_of_all_allocations(budget):
    for seed in range(5):
        variances = spectrum(4, seed=seed)
        bits = allocate_bits(variances, budget=budget)
        assert bits.sum() == min(budget, 32)
        best = left(variances, EVERY)[EVERY.sum(-1) <= budget].min()
        assert float(left(variances, bits)) == pytest.approx(float(best), rel=1e-12)


@pytest.mark.parametrize("direction", [0.3, 1.0, 3.0, 12.0])
def test_with_a_cost_of_directions_nothing_as_cheap_is_better_along_the_steps(direction):
    """Every allocation without rest is optimal for what it costs; a rest is less than a plane."""
    for seed in range(3):
        variances = spectrum(4, seed=seed)
        for fraction in (0.9, 0.5, 0.2, 0.05, 0.01, 1e-3):
            bits = allocate_bits(
                variances, distortion=fraction * variances.sum(), plane_cost=1.5, direction_cost=direction
            )
            assert left(variances, bits) <= fraction * variances.sum()
            as_cheap = cost(EVERY, 1.5, direction) <= cost(bits, 1.5, direction) + 1e-9
            assert left(variances, bits) <= left(variances, EVERY)[as_cheap].min() * (1 + 1e-12)
        for budget in (direction + 1.5, direction + 3.2, 2 * direction + 8, 3 * direction + 21, 4 * direction + 40):
            bits = allocate_bits(variances, budget=budget, plane_cost=1.5, direction_cost=direction)
            spent = cost(bits, 1.5, direction)
            assert budget - 1.5 < spent <= budget
            within = cost(EVERY, 1.5, direction) <= budget
            assert left(variances, bits) <= 1.3 * left(variances, EVERY)[within].min()


def test_never_worse_than_random_allocations_of_the_same_bits():
    generator = torch.Generator().manual_seed(3)
    for n in (7, 30):
        variances = spectrum(n, seed=n)
        for budget in (n // 2, n, 3 * n):
            mine = left(variances, allocate_bits(variances, budget=budget))
            weights = variances.sqrt().expand(200, n)
            drawn = torch.multinomial(weights, budget, replacement=True, generator=generator)
            others = torch.zeros(200, n, dtype=torch.int64).scatter_add(-1, drawn, torch.ones_like(drawn)).clamp_max(8)
            assert (mine <= left(variances, others) * (1 + 1e-12)).all()


@pytest.mark.parametrize("bits_per_element", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.5])
def test_between_the_rate_distortion_bound_and_what_scalar_quantisers_lose(decay, bits_per_element):
    n = 128
    variances = torch.arange(1, n + 1, dtype=torch.float64) ** -decay
    bits = allocate_bits(variances, budget=int(n * bits_per_element))
    ratio = float(left(variances, bits) / rate_distortion_bound(variances, bits_per_element))
    assert 1.2 < ratio < math.sqrt(3) * math.pi / 2


def test_batches_are_allocated_each_on_its_own():
    variances = spectrum(3, 2, 10)
    together = allocate_bits(variances, budget=17, direction_cost=2.5)
    alone = [allocate_bits(row, budget=17, direction_cost=2.5) for row in variances.flatten(0, 1)]
    assert torch.equal(together.flatten(0, 1), torch.stack(alone))


def test_larger_variances_never_have_fewer_bits_and_zero_has_none():
    variances = torch.cat([spectrum(20), torch.zeros(3)])
    for budget in (6.0, 30.0, 500.0):
        bits = allocate_bits(variances, budget=budget, direction_cost=2)
        assert (bits[variances.argsort()].diff() >= 0).all()
        assert (bits[-3:] == 0).all()
    assert (allocate_bits(torch.zeros(2, 3), budget=5) == 0).all()
    assert (allocate_bits(torch.zeros(2, 3), distortion=torch.zeros(2)) == 0).all()


def test_bad_input_is_named():
    variances = spectrum(4)
    with pytest.raises(ValueError, match="budget must be at least 3"):
        allocate_bits(variances, budget=2.9, plane_cost=1, direction_cost=2)
    with pytest.raises(ValueError, match="either budget or distortion"):
        allocate_bits(variances)
    with pytest.raises(ValueError, match="either budget or distortion"):
        allocate_bits(variances, budget=3, distortion=torch.tensor(0.1))
    with pytest.raises(ValueError, match="distortion must be at least"):
        allocate_bits(variances, distortion=1e-6 * variances.sum())
