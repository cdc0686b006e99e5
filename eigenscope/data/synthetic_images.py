"""Built-in synthetic images, a stand-in for CIFAR-100: 100 procedurally drawn classes in 20 groups of five.

A group is a silhouette, a class within it is what the silhouette is filled with. Pose, colours, light, a smaller
plain object behind and pixel noise vary from sample to sample, so that a fixed weighting of pixels tells few classes
apart. The silhouettes are superformula curves (Gielis, *A generic geometric transformation that unifies a wide range
of natural and abstract shapes*, American Journal of Botany 90, 2003).

Everything computed per pixel or per sample uses only operations that IEEE 754 rounds exactly, with sines and powers
read from tables: a vectorised sine may differ in its last bit between the body and the tail of a tensor, and a
picture must not depend on the batch it was drawn in.
"""

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from eigenscope.noise.streams import random_bits, stream_key, uniform

NUM_GROUPS = 20
CLASSES_PER_GROUP = 5
NUM_CLASSES = NUM_GROUPS * CLASSES_PER_GROUP

MIN_IMAGE_SIZE = 16
_SPLITS = {"train": 0, "test": 1}


class _Silhouette(NamedTuple):
    """Superformula constants and what is done to the curve; all curves are scaled to the area of the unit disc."""

    m: float
    n1: float
    n2: float
    n3: float
    stretch: float = 1.0  # width over height
    hole: float = 0.0  # radius of the hole over the outer radius
    turn: float = 0.0  # in turns, before stretching


# A regular m-gon needs n2 = n3 = 2 - 2 n1 log2(cos(pi / m)), which puts its corners on the right circle.
_SILHOUETTES = (
    _Silhouette(0, 1, 1, 1),  # disc
    _Silhouette(0, 1, 1, 1, hole=0.45),  # ring
    _Silhouette(0, 1, 1, 1, stretch=2.0),  # oval, lying
    _Silhouette(4, 12, 12, 12, stretch=0.36),  # pillar
    _Silhouette(4, 40, 42, 42),  # box
    _Silhouette(4, 40, 42, 42, hole=0.5),  # frame
    _Silhouette(4, 1, 1, 1, stretch=0.6),  # diamond, tall
    _Silhouette(3, 40, 82, 82, turn=0.25),  # triangle, point up
    _Silhouette(3, 4.5, 10, 10, turn=0.25, hole=0.42),  # rounded triangle with a hole
    _Silhouette(5, 2, 7, 7, turn=0.25),  # starfish
    _Silhouette(5, 0.6, 0.7, 0.7, turn=0.75),  # star
    _Silhouette(8, 0.6, 0.9, 0.9),  # sun
    _Silhouette(6, 40, 18.6, 18.6, hole=0.42),  # nut
    _Silhouette(4, 0.6, 0.7, 0.7),  # sparkle
    _Silhouette(2, 1, 4, 8, stretch=1.3),  # bean
    _Silhouette(1, 0.9, 0.9, 0.9, turn=0.75, stretch=0.8),  # drop
    _Silhouette(3, 5, 18, 18, turn=0.75),  # propeller
    _Silhouette(6, 1, 4, 6, hole=0.3),  # flower
    _Silhouette(2, 0.6, 0.6, 0.6),  # leaf, lying
    _Silhouette(7, 2, 8, 4, stretch=1.5),  # splash
)

# Ink of the five fills, as coefficients of 1, a, b, ab, c: a and b are triangle waves in [-1, 1] along two orthogonal
# directions and c is one along the radius; ink shows where the sum is positive.
_FILLS = (
    (-9.0, 0.0, 0.0, 0.0, 0.0),  # plain
    (0.0, 1.0, 0.0, 0.0, 0.0),  # stripes
    (0.0, 0.0, 0.0, 2.0, 0.0),  # checks
    (-0.5, 0.8, 0.8, 0.0, 0.0),  # spots
    (0.0, 0.0, 0.0, 0.0, 1.0),  # rings
)

# Nuisance ranges. Lengths are fractions of half the image's side, angles are turns, colours lie in [0, 1].
_SCALE = (0.44, 0.64)  # small enough to move about, large enough that a fill shows two periods
_SHIFT = 0.3
_TILT = 0.09  # upright stays upright: the lying and the standing silhouettes are different groups
_FILL_TILT = 0.12  # stripes run roughly upright, so that one patch can recognise them
_PERIOD = (0.6, 0.85)  # of a fill, in silhouette radii: 4 to 9 pixels at size 32, about a ViT's patch
_HUE_SPREAD = 0.17  # a group has a favourite hue, the cue learnt first; wider would hide it, narrower give it away
_DECOY_SCALE = (0.18, 0.32)
_NOISE = 0.1  # peak of the triangular pixel noise

_DRAWS = 31  # uniform numbers that one picture takes, besides its noise
_PROFILE_POINTS = 2048  # the nearest entry is within 0.03 pixels of the curve at size 32
_TURN_POINTS = 4096
_PIXELS_AT_ONCE = 1 << 18  # about 60 MB of work space, whatever the number of samples


def _gielis(shape: _Silhouette, angle: float) -> float:
    root = math.sqrt(shape.stretch)
    x, y = math.cos(angle) / root, math.sin(angle) * root
    quarter = shape.m * (math.atan2(y, x) - 2 * math.pi * shape.turn) / 4
    power_sum = abs(math.cos(quarter)) ** shape.n2 + abs(math.sin(quarter)) ** shape.n3
    return float(power_sum ** (-1 / shape.n1) / math.hypot(x, y))


@lru_cache(maxsize=NUM_GROUPS)
def _unit_area_scale(group: int) -> float:
    steps = 720
    squares = (_gielis(_SILHOUETTES[group], 2 * math.pi * (k + 0.5) / steps) ** 2 for k in range(steps))
    return math.sqrt(steps / sum(squares))


def silhouette_radius(group: int, angle: float) -> float:
    """The outline of a group's silhouette, without tilt, before any hole is cut: Gielis, equation 1, stretched.

    Args:
        group: 0 to NUM_GROUPS - 1.
        angle: in radians, from the picture's right towards its lower edge.

    Returns:
        The distance from the centre, scaled so that the outline encloses the area pi of the unit disc.

    Raises:
        ValueError: if there is no such group.
    """
    if not 0 <= group < NUM_GROUPS:
        raise ValueError(f"group is {group}; it must be in 0 to {NUM_GROUPS - 1}")
    return _unit_area_scale(group) * _gielis(_SILHOUETTES[group], angle)


@lru_cache(maxsize=1)
def _profiles() -> Tensor:
    """Radius and cosine between radius and normal, (2, NUM_GROUPS * _PROFILE_POINTS), over the diamond angle.

    The diamond angle y / (|x| + |y|) grows with the angle, as an arctangent does, but needs no transcendental.
    """
    angles = []
    for point in range(_PROFILE_POINTS):
        t = 4 * (point + 0.5) / _PROFILE_POINTS - 1
        q = t if t <= 1 else 2 - t
        angles.append(math.atan2(q, (1 - abs(q)) if t <= 1 else abs(q) - 1))
    radii, cosines = [], []
    for group, angle in product(range(NUM_GROUPS), angles):
        before, here, after = (silhouette_radius(group, angle + step) for step in (-1e-3, 0.0, 1e-3))
        radii.append(here)
        cosines.append(1 / math.hypot(1, (after - before) / 2e-3 / here))
    return torch.tensor([radii, cosines], dtype=torch.float32)


@lru_cache(maxsize=1)
def _turns() -> Tensor:
    """Cosine and sine of every multiple of 1 / _TURN_POINTS turns, (2, _TURN_POINTS)."""
    angles = [2 * math.pi * k / _TURN_POINTS for k in range(_TURN_POINTS)]
    return torch.tensor([[math.cos(a) for a in angles], [math.sin(a) for a in angles]], dtype=torch.float32)


def _rotate(x: Tensor, y: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = _turns().to(x.device)[:, (turns * _TURN_POINTS).to(torch.int64) % _TURN_POINTS]
    return x * cos + y * sin, y * cos - x * sin


def _between(bounds: tuple[float, float], u: Tensor) -> Tensor:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _wave(x: Tensor) -> Tensor:
    """Triangle wave of period 1 in [-1, 1]; it changes by 4 per unit of x."""
    return (x - x.floor() - 0.5).abs() * 4 - 1


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours (N, 3, 1) from hue in turns, saturation and value, each (N, 1)."""
    hue = hue + torch.tensor([0.0, 2 / 3, 1 / 3], dtype=torch.float32, device=hue.device)
    full = ((hue - hue.floor()) * 6 - 3).abs() - 1
    return (value * (1 - saturation * (1 - full.clamp(0, 1))))[:, :, None]


def _silhouette(x: Tensor, y: Tensor, group: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Anti-aliased cover and radius relative to the outline, both (N, P), of each sample's silhouette.

    Coordinates x and y, (N, P), and a pixel's side, (N, 1), are in units of the silhouette's radius; group is (N, 1).
    """
    span = x.abs() + y.abs() + 1e-6
    q = y / span
    diamond = torch.where(x < 0, 2 - q, q) + 1
    entry = (diamond * (_PROFILE_POINTS / 4)).to(torch.int64).clamp(0, _PROFILE_POINTS - 1) + group * _PROFILE_POINTS
    outline, cosine = (table.take(entry) for table in _profiles().to(x.device))
    radius = (x * x + y * y).sqrt()
    sharpness = cosine / pixel
    hole = torch.tensor([shape.hole for shape in _SILHOUETTES], dtype=torch.float32, device=x.device)[group]
    outside = ((outline - radius) * sharpness + 0.5).clamp(0, 1)
    inside = ((radius - hole * outline) * sharpness + 0.5).clamp(0, 1)
    return torch.where(hole > 0, outside * inside, outside), radius / outline


def _draw(pose_key: int, noise_key: int, indices: Tensor, size: int) -> Tensor:
    """One chunk of :func:`draw_images`."""
    device = indices.device
    group = (indices % NUM_CLASSES // CLASSES_PER_GROUP)[:, None]
    u = iter(uniform(pose_key, indices, _DRAWS)[:, :, None].unbind(1))
    centres = (torch.arange(size, device=device, dtype=torch.float32) * 2 + (1 - size)) / size
    x, y = centres.repeat(size)[None], centres.repeat_interleave(size)[None]

    # ground: two colours mixed along a direction
    hue = next(u)
    here = _rgb(hue, next(u) * 0.6, 0.15 + next(u) * 0.75)
    there = _rgb(hue + next(u) * 0.3, next(u) * 0.6, 0.15 + next(u) * 0.75)
    along = _rotate(x, y, next(u))[0] * 0.5 + 0.5
    image = here + (there - here) * along.clamp(0, 1)[:, None]

    # decoy: a plain smaller object of any group
    scale = _between(_DECOY_SCALE, next(u))
    dx, dy = (x - (next(u) * 2 - 1) * 0.8) / scale, (y - (next(u) * 2 - 1) * 0.8) / scale
    dx, dy = _rotate(dx, dy, next(u))
    cover, _ = _silhouette(dx, dy, (next(u) * NUM_GROUPS).to(torch.int64), 2 / (size * scale))
    image = image + (_rgb(next(u), next(u), next(u)) - image) * cover[:, None]

    # object
    scale = _between(_SCALE, next(u))
    ox, oy = (x - (next(u) * 2 - 1) * _SHIFT) / scale, (y - (next(u) * 2 - 1) * _SHIFT) / scale
    ox, oy = _rotate(ox, oy, (next(u) * 2 - 1) * _TILT + 1)
    pixel = 2 / (size * scale)
    cover, depth = _silhouette(ox, oy, group, pixel)

    # fill
    period = _between(_PERIOD, next(u))
    fx, fy = _rotate(ox, oy, (next(u) * 2 - 1) * _FILL_TILT + 1)
    a, b, c = _wave(fx / period + next(u)), _wave(fy / period + next(u)), _wave(depth / period + next(u))
    k = torch.tensor(_FILLS, dtype=torch.float32, device=device)[indices % CLASSES_PER_GROUP][:, :, None].unbind(1)
    ink = ((k[0] + k[1] * a + k[2] * b + k[3] * (a * b) + k[4] * c) * (period / pixel / 4) + 0.5).clamp(0, 1)

    # colours: the ink's hue stands in a relation to the base's that the group fixes
    hue = group.float() * (7 / NUM_GROUPS) + (next(u) + next(u) - 1) * _HUE_SPREAD
    saturation, bright, dark = 0.55 + next(u) * 0.45, 0.7 + next(u) * 0.3, 0.2 + next(u) * 0.25
    flip = next(u) < 0.5
    base = _rgb(hue, saturation, torch.where(flip, dark, bright))
    inked = _rgb(hue + (group % 4).float() * 0.17, saturation * 0.8, torch.where(flip, bright, dark))
    light = _rotate(ox, oy, next(u))[0] * 0.22 + 1
    colour = (base + (inked - base) * ink[:, None]) * light[:, None]
    image = image + (colour - image) * cover[:, None]

    # noise: the sum of two bytes; a word holds eight
    words = (2 * 3 * size * size + 7) // 8
    bytes_ = random_bits(noise_key, indices, words).view(torch.uint8)[:, : 6 * size * size]
    noise = bytes_.reshape(-1, 2, 3, size * size).to(torch.float32)
    image = image * 255 + (noise[:, 0] + noise[:, 1] - 255) * _NOISE
    return image.round().clamp(0, 255).to(torch.uint8).reshape(-1, 3, size, size)


def draw_images(seed: int, split: str, indices: Tensor, image_size: int = 32) -> tuple[Tensor, Tensor]:
    """Draws samples of the synthetic 100-class data set.

    A sample is a pure function of (seed, split, index): the same whatever the batch, its order or its size.

    Args:
        seed: any integer; each gives its own samples of the same classes.
        split: "train" or "test".
        indices: (N,) of an integer dtype, not negative. Index i is of class i % 100, and class c of group c // 5.
        image_size: side in pixels, at least 16. Poses and colours do not depend on it, the pixel noise does.

    Returns:
        (N, 3, image_size, image_size) uint8 RGB images and (N,) int64 labels, on the device of ``indices``.

    Raises:
        ValueError: if an argument is not as described.
    """
    if split not in _SPLITS:
        raise ValueError(f'split is {split!r}; it must be "train" or "test"')
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}; it must be at least {MIN_IMAGE_SIZE}")
    if indices.ndim != 1 or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices is {tuple(indices.shape)} of {indices.dtype}; it must be (N,) of an integer dtype")
    indices = indices.to(torch.int64)
    if bool((indices < 0).any()):
        raise ValueError(f"indices holds {int(indices.min())}; none may be negative")
    pose_key, noise_key = (stream_key(seed, _SPLITS[split], purpose) for purpose in range(2))
    images = torch.empty((len(indices), 3, image_size, image_size), dtype=torch.uint8, device=indices.device)
    chunk = max(1, _PIXELS_AT_ONCE // image_size**2)
    for start in range(0, len(indices), chunk):
        images[start : start + chunk] = _draw(pose_key, noise_key, indices[start : start + chunk], image_size)
    return images, indices % NUM_CLASSES
