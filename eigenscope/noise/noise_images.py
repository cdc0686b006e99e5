"""Batches of noise images, each a function of (seed, epoch, sample, type, size) alone."""

import torch
from torch import Tensor

from eigenscope.noise.distributions import NOISE_DISTRIBUTIONS
from eigenscope.noise.streams import Streams, random_bits, stream_key


def draw_noise(
    types: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    samples: Tensor,
    image_size: int,
    clamp: float | None = None,
) -> Tensor:
    """Draws noise images of 16 types.

    An image is a function of (seed, epoch, sample, type, image_size): the same to the bit on one kind of device,
    whatever else is in the batch. Mean squares, without a clamp and with one of 4:

    ==  ==============  ==================================================  ================================
    id  name            distribution                                        mean square
    ==  ==============  ==================================================  ================================
    0   gaussian        N(0, 1)                                             1
    1   uniform         U(−1, 1)                                            1/3
    2   uniform_scaled  U(−2, 2)                                            4/3
    3   poisson         Pois(λ) / λ − 1, λ ~ U(0.5, 20) per image           0.189 (0.186 clamped)
    4   pink            amplitude 1/|f|, mean 0, over its deviation         1
    5   brown           amplitude 1/|f|², mean 0, over its deviation        1
    6   salt_pepper     ±2 + 0.1 N                                          4.01
    7   sparse          3 N · Bernoulli(0.1)                                0.9 (0.64 clamped)
    8   block           N on square blocks of side 2 to 15                  1
    9   gradient        ramp of ±2 at a random angle + 0.5 N                1/4 + 4/3 · (s + 1) / (s − 1)
    10  checkerboard    ±1 on cells of side 2 to 15 + 0.3 N                 1.09
    11  mixed           a N + (1 − a) U(−1, 1), a ~ U(0.2, 0.8) per image   0.373
    12  structural      quadrants N, U(−1, 1), pink / 2, ±1                 0.646, for even s from 4 on
    13  cauchy          standard Cauchy                                     infinite (2.96 clamped, to ±3)
    14  exponential     Exp(1) − 1                                          1 (0.93 clamped)
    15  laplace         Laplace of scale 1                                  2 (1.82 clamped)
    ==  ==============  ==================================================  ================================

    Args:
        types: (N,) int64, ids as in :data:`NOISE_TYPES`.
        seed: any integer.
        epoch: one for all samples, or (N,) int64.
        samples: (N,) int64, any integers.
        image_size: side s in pixels, at least 2.
        clamp: None leaves heavy tails as they are, all finite; otherwise values are limited to ±clamp and the Cauchy
            distribution to three quarters of it. The reported generators clamp at 4.

    Returns:
        (N, 3, s, s) float32 on the device of ``samples``.

    Raises:
        ValueError: if an argument is not as described.
    """
    for name, given in (("types", types), ("samples", samples), ("epoch", epoch)):
        if isinstance(given, Tensor) and (given.dtype != torch.int64 or given.shape != (len(samples),)):
            raise ValueError(f"{name} is {tuple(given.shape)} of {given.dtype}; it must be ({len(samples)},) of int64")
    if image_size < 2:
        raise ValueError(f"image_size is {image_size}; it must be at least 2")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp is {clamp}; it must be positive or None")
    types = types.cpu()
    invalid = types[(types < 0) | (types >= len(NOISE_DISTRIBUTIONS))].tolist()
    if invalid:
        raise ValueError(f"types holds {invalid[0]}; all must be in 0 to {len(NOISE_DISTRIBUTIONS) - 1}")
    epochs = torch.as_tensor(epoch, dtype=torch.int64, device=samples.device).view(-1)
    indices = samples + random_bits(stream_key(seed), epochs, 1)[:, 0]
    images = torch.empty((len(samples), 3, image_size, image_size), dtype=torch.float32, device=samples.device)
    # An image is scattered to its place four numbers at a time where its size allows, in a third of the time.
    wide = images.view(len(samples), 3 * image_size**2).view(torch.float32 if image_size % 2 else torch.complex128)
    for noise_type, law in enumerate(NOISE_DISTRIBUTIONS.values()):
        places = (types == noise_type).nonzero()[:, 0].to(samples.device)
        if not len(places):
            continue
        streams = Streams(stream_key(seed, noise_type, image_size), indices[places])
        parameters = streams.uniform(law.parameters) if law.parameters else indices.new_empty((len(places), 0))
        for part, rows in streams.chunks(3 * image_size**2):
            drawn = law.draw(part, parameters[rows], image_size)
            if clamp is not None:
                drawn.clamp_(-law.limit * clamp, law.limit * clamp)
            wide[places[rows]] = drawn.reshape(len(part), -1).view(wide.dtype)
    return images
