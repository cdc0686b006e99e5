import math

import pytest
import scipy.integrate
import scipy.stats
import torch

from eigenscope.kv.codecs.bit_planes import dequantize, distortions, lloyd_max, quantize


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
def test_distortions_are_those_that_max_printed(bits, published):
    assert lloyd_max(bits).distortion == pytest.approx(published, abs=3e-5)


def test_one_bit_is_the_mean_of_a_half_normal():
    assert lloyd_max(1).levels.tolist() == pytest.approx([-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)], abs=1e-14)
    assert lloyd_max(1).distortion == pytest.approx(1 - 2 / math.pi, abs=1e-14)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_levels_are_means_of_their_cells_and_the_distortion_is_the_integral(bits):
    levels, thresholds, distortion = lloyd_max(bits)
    edges = [-math.inf, *thresholds.tolist(), math.inf]
    cells = list(zip(edges, edges[1:], levels.tolist(), strict=False))
    normal = scipy.stats.norm
    for low, high, level in cells[:: max(1, len(cells) // 16)]:
        assert level == pytest.approx(normal.expect(lambda x: x, lb=low, ub=high, conditional=True), abs=1e-6)
    errors = [
        scipy.integrate.quad(lambda x, level=level: (x - level) ** 2 * normal.pdf(x), low, high)[0]
        for low, high, level in cells
    ]
    assert distortion == pytest.approx(sum(errors), rel=1e-6)


def test_distortions_fall_convexly_towards_the_asymptote():
    falls = -distortions().diff()
    assert (falls > 0).all()
    assert (falls.diff() < 0).all()
    ratio = distortions()[8] * 4**8
    assert 0.98 * math.sqrt(3) * math.pi / 2 < ratio < math.sqrt(3) * math.pi / 2  # Panter and Dite


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantize_finds_the_nearest_level(bits):
    x = 2 * torch.randn(7, 50, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    codes = quantize(x, bits)
    assert codes.dtype == torch.uint8
    nearest = (x[..., None] - lloyd_max(bits).levels).abs().argmin(-1)
    assert torch.equal(codes.long(), nearest)
    assert torch.equal(dequantize(codes, bits, torch.float64), lloyd_max(bits).levels[nearest])


@pytest.mark.parametrize("bits", [0, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be from 1 to 8"):
        lloyd_max(bits)
