import math

import pytest
import torch

from eigenscope.kv import rate_distortion_bound


def by_bisection(spectrum: torch.Tensor, bits: float) -> float:
    low, high = 0.0, float(spectrum.max())
    for _ in range(200):
        water = (low + high) / 2
        rate = sum(0.5 * math.log2(value / water) for value in spectrum.tolist() if value > water)
        low, high = (water, high) if rate > bits * len(spectrum) else (low, water)
    return sum(min(high, value) for value in spectrum.tolist())


@pytest.mark.parametrize("bits", [0.01, 0.3, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("n", [1, 2, 17, 128])
def test_agrees_with_bisection_on_the_water_level(n, bits):
    for seed in range(3):
        values = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** (1 + 3 * seed)
        values[n // 2 + 1 :: 3] = 0
        assert float(rate_distortion_bound(values, bits)) == pytest.approx(by_bisection(values, bits), rel=1e-9)


def test_white_spectra_have_their_closed_form():
    for bits in (0.0, 0.5, 3.0):
        assert float(rate_distortion_bound(torch.full((10,), 2.0), bits)) == pytest.approx(20 * 4**-bits, rel=1e-12)


def test_no_bits_leave_everything_and_each_more_takes_six_decibels():
    values = torch.arange(1, 65) ** -1.5
    total = values.double().sum()
    assert float(rate_distortion_bound(values, 0)) == pytest.approx(float(total), rel=1e-12)
    assert float(rate_distortion_bound(values, 1e-9)) == pytest.approx(float(total), rel=1e-6)
    decibels = 10 * rate_distortion_bound(values.expand(3, -1), torch.tensor([8.0, 9.0, 10.0])).log10()
    torch.testing.assert_close(decibels.diff(), torch.full((2,), -20 * math.log10(2), dtype=torch.float64))
    assert float(rate_distortion_bound(torch.zeros(4), 1.0)) == 0


def test_leading_shapes_and_bits_broadcast_and_order_does_not_matter():
    values = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([0.5, 1.0, 2.0])
    together = rate_distortion_bound(values, bits)
    assert together.shape == (2, 3)
    assert together.dtype == torch.float64
    assert float(together[1, 2]) == pytest.approx(float(rate_distortion_bound(values[1, 2].flip(0), 2.0)), rel=1e-12)
    assert rate_distortion_bound(values[0, 0], bits).shape == (3,)


def test_bad_input_is_named():
    for wrong in (torch.tensor([1.0, -1e-3]), torch.tensor([math.nan]), torch.tensor([math.inf]), torch.empty(2, 0)):
        with pytest.raises(ValueError, match="spectrum must be"):
            rate_distortion_bound(wrong, 1.0)
    for bits in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="bits must be"):
            rate_distortion_bound(torch.ones(2), bits)
