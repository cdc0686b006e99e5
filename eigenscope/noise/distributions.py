"""Noise distributions: sixteen types, each drawn for several images at once from their streams.

A sampler takes the streams of n images, the images' own parameters, which are uniform numbers (n, ``parameters``), and
the side s, and returns (n, 3, s, s) float32. Channels are independent except where a parameter shapes the image.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.noise.streams import Streams

_BLOCKS = (2, 15)  # sides of blocks and of checkerboard cells, both included
_RATES = (0.5, 20.0)  # of the Poisson distribution
_COUNTS = 64  # Poisson counts above 63 have a probability below 1e-13 at rate 20


class NoiseDistribution(NamedTuple):
    """A noise distribution: its sampler, number of parameters per image, and limit as a fraction of the clamp."""

    draw: Callable[[Streams, Tensor, int], Tensor]
    parameters: int = 0
    limit: float = 1.0


def _images(numbers: Tensor, size: int) -> Tensor:
    return numbers.reshape(-1, 3, size, size)


def _gaussian(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _images(streams.normal(3 * size**2), size)


def _uniform(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _images(streams.symmetric(3 * size**2), size)


def _uniform_scaled(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _images(streams.symmetric(3 * size**2).mul_(2), size)


def _poisson(streams: Streams, parameters: Tensor, size: int) -> Tensor:
    rates = _RATES[0] + (_RATES[1] - _RATES[0]) * parameters
    ratios = rates.double() / torch.arange(_COUNTS, device=rates.device).clamp_(min=1)
    ratios[:, 0] = 1
    cumulative = ratios.cumprod(1).cumsum(1)  # of the unnormalised probabilities rate^k / k!
    below = ((cumulative / cumulative[:, -1:]) * 2.0**31).floor_().sub_(2.0**30).to(torch.int32).view(-1)

    # The count is how many of its image's entries of `below` do not exceed a 31-bit number: a bisection without
    # branches, several times faster than searchsorted.
    numbers = streams.half_words(3 * size**2) >> 1
    first = torch.arange(len(rates), dtype=torch.int32, device=rates.device)[:, None] * _COUNTS
    position = first.expand(numbers.shape).contiguous()
    step = _COUNTS // 2
    while step:
        bound = below.index_select(0, (position + (step - 1)).view(-1)).view(numbers.shape)
        position.add_(torch.sub(numbers, bound, out=bound).bitwise_right_shift_(31).bitwise_not_().bitwise_and_(step))
        step //= 2
    return _images(position.sub_(first).to(torch.float32).div_(rates).sub_(1), size)


def _coloured(streams: Streams, height: int, width: int, exponent: int) -> Tensor:
    """Fields (n, 3, height, width) of amplitude |f|^-exponent, each divided by its standard deviation.

    A field of one pixel has no frequency but 0 and is 0.
    """
    columns = width // 2 + 1
    rows_f = torch.fft.fftfreq(height, 1 / height, dtype=torch.float32, device=streams.device)
    columns_f = torch.arange(columns, dtype=torch.float32, device=streams.device)
    amplitude = (rows_f[:, None].square() + columns_f.square()).pow_(-exponent / 2)
    amplitude[0, 0] = 0  # the mean
    # The inverse transform keeps the Hermitian part of the first and the Nyquist column only, half their power.
    amplitude[:, (columns_f == 0) | (2 * columns_f == width)] *= math.sqrt(2)
    numbers = streams.normal(3 * height * columns * 2).reshape(-1, 3, height, columns, 2).mul_(amplitude[..., None])
    fields = _inverse_rfft2(torch.view_as_complex(numbers), height, width)
    variance = fields.square().sum(-1).sum(-1).div_(height * width)  # the mean is 0
    fields *= variance.clamp_min_(torch.finfo(torch.float32).tiny).rsqrt_()[..., None, None]
    return fields


def _inverse_rfft2(spectrum: Tensor, height: int, width: int) -> Tensor:
    """Unnormalised inverse real 2-D FFT, (..., height, width) float32.

    On a CPU it is computed by pocketfft (scipy.fft) in one thread. torch calls MKL there, whose results differ in
    their last bits with the number of threads on some processors, and between vendors; a sample must not.
    """
    if spectrum.device.type != "cpu":
        fields: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="forward")
        return fields
    from scipy.fft import irfft2  # here: its import takes a moment that no help text needs

    return torch.from_numpy(irfft2(spectrum.numpy(), s=(height, width), norm="forward", workers=1))


def _pink(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _coloured(streams, size, size, 1)


def _brown(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _coloured(streams, size, size, 2)


def _salt_pepper(streams: Streams, _: Tensor, size: int) -> Tensor:
    count = 3 * size**2
    return _images(streams.normal(count).mul_(0.1).add_(streams.signs(count).mul_(2)), size)


def _sparse(streams: Streams, _: Tensor, size: int) -> Tensor:
    count = 3 * size**2
    present = streams.half_words(count) < round(0.1 * 2**32) - 2**31
    return _images(streams.normal(count).mul_(3).mul_(present), size)


def _sides(parameters: Tensor) -> Tensor:
    low, high = _BLOCKS
    return (parameters * (high - low + 1)).to(torch.int64) + low


def _block(streams: Streams, parameters: Tensor, size: int) -> Tensor:
    cells = -(-size // _BLOCKS[0])
    coarse = streams.normal(3 * cells**2).reshape(-1, 3 * cells, cells)
    cell = torch.arange(size, device=coarse.device) // _sides(parameters)
    wide = coarse.gather(2, cell[:, None, :].expand(-1, 3 * cells, -1)).view(-1, size)
    channel = torch.arange(0, len(wide), cells, device=coarse.device).view(-1, 3, 1)
    return _images(wide.index_select(0, (channel + cell[:, None, :]).view(-1)), size)


def _gradient(streams: Streams, parameters: Tensor, size: int) -> Tensor:
    angle = parameters * (2 * math.pi)
    x = torch.linspace(-2, 2, size, dtype=torch.float32, device=angle.device)
    ramp = (x * angle.cos())[:, None, :] + (x * angle.sin())[:, :, None]
    return _gaussian(streams, parameters, size).mul_(0.5).add_(ramp[:, None])


def _checkerboard(streams: Streams, parameters: Tensor, size: int) -> Tensor:
    side = _sides(parameters[:, :1])
    phase = (parameters[:, 1:] * (2 * side)).to(torch.int64)
    pixel = torch.arange(size, device=side.device)
    odd_row, odd_column = ((pixel + phase[:, axis : axis + 1]) // side % 2 for axis in (0, 1))
    board = 1 - 2 * (odd_row[:, :, None] ^ odd_column[:, None, :])
    return _gaussian(streams, parameters, size).mul_(0.3).add_(board[:, None].to(torch.float32))


def _mixed(streams: Streams, parameters: Tensor, size: int) -> Tensor:
    weight = 0.2 + 0.6 * parameters
    count = 3 * size**2
    return _images(streams.normal(count).mul_(weight).add_(streams.symmetric(count).mul_(1 - weight)), size)


def _structural(streams: Streams, _: Tensor, size: int) -> Tensor:
    top, bottom = size // 2, size - size // 2
    images = torch.empty((len(streams), 3, size, size), dtype=torch.float32, device=streams.device)
    images[:, :, :top, :top] = _images(streams.normal(3 * top**2), top)
    images[:, :, :top, top:] = streams.symmetric(3 * top * bottom).reshape(-1, 3, top, bottom)
    images[:, :, top:, :top] = _coloured(streams, bottom, top, 1).mul_(0.5)
    images[:, :, top:, top:] = _images(streams.signs(3 * bottom**2), bottom)
    return images


def _cauchy(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _images(streams.cauchy(3 * size**2), size)


def _exponential(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _images(streams.exponential(3 * size**2).sub_(1), size)


def _laplace(streams: Streams, _: Tensor, size: int) -> Tensor:
    return _images(streams.laplace(3 * size**2), size)


NOISE_DISTRIBUTIONS = {
    "gaussian": NoiseDistribution(_gaussian),
    "uniform": NoiseDistribution(_uniform),
    "uniform_scaled": NoiseDistribution(_uniform_scaled),
    "poisson": NoiseDistribution(_poisson, parameters=1),
    "pink": NoiseDistribution(_pink),
    "brown": NoiseDistribution(_brown),
    "salt_pepper": NoiseDistribution(_salt_pepper),
    "sparse": NoiseDistribution(_sparse),
    "block": NoiseDistribution(_block, parameters=1),
    "gradient": NoiseDistribution(_gradient, parameters=1),
    "checkerboard": NoiseDistribution(_checkerboard, parameters=3),
    "mixed": NoiseDistribution(_mixed, parameters=1),
    "structural": NoiseDistribution(_structural),
    "cauchy": NoiseDistribution(_cauchy, limit=0.75),
    "exponential": NoiseDistribution(_exponential),
    "laplace": NoiseDistribution(_laplace),
}

NOISE_TYPES: tuple[str, ...] = tuple(NOISE_DISTRIBUTIONS)
"""The names in order of id."""

CURRICULUM_TIERS = ((0,), (4, 5, 8, 9), (1, 2, 10, 11), (3, 14, 15, 7), (13, 6, 12))
"""Ids in the order in which the reported curriculum unlocks them."""


def noise_ids(names: Sequence[str | int]) -> tuple[int, ...]:
    """The ids of noise types given by name or by id.

    Args:
        names: any of :data:`NOISE_TYPES`, or of their positions there.

    Returns:
        The ids, in the order given.

    Raises:
        ValueError: if one is unknown.
    """
    ids: dict[str | int, int] = {name: i for i, name in enumerate(NOISE_TYPES)} | {
        i: i for i in range(len(NOISE_TYPES))
    }
    for name in names:
        if name not in ids:
            allowed = ", ".join(NOISE_TYPES)
            raise ValueError(
                f"noise type is {name!r}; it must be one of {allowed}, or an id from 0 to {len(ids) // 2 - 1}"
            )
    return tuple(ids[name] for name in names)
