"""Scalar fields to paint with: noise of several octaves, ramps, spots, waves; and how colours follow them.

A field is [height, width] in float32. Pictures are [3, height, width] in 0…1, channels first, since arithmetic that
repeats a field over the last axis is five times as slow.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

Shape = tuple[int, int]
Rng = np.random.Generator


@lru_cache(maxsize=32)
def grid(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) of every pixel, 0…1 over height and over width. Shared: do not write."""
    y, x = (np.linspace(0, 1, side, dtype=np.float32) for side in shape)
    fields = np.broadcast_to(y[:, None], shape).copy(), np.broadcast_to(x[None], shape).copy()
    for field in fields:
        field.flags.writeable = False
    return fields


@lru_cache(maxsize=32)
def pixels(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) of every pixel, counted in pixels from the upper left corner. Shared: do not write."""
    y, x = grid(shape)
    fields = y * (shape[0] - 1), x * (shape[1] - 1)
    for field in fields:
        field.flags.writeable = False
    return fields


def noise(rng: Rng, shape: Shape, cell: float, octaves: int = 4, gain: float = 0.5, aspect: float = 1.0) -> np.ndarray:
    """Smooth noise of mean 0 and deviation about 1; its coarsest features are `cell` pixels wide.

    Each octave is half as fine and `gain` times as strong (`gain` 0.5 is near the 1/f of photographs; Field 1987,
    "Relations between the statistics of natural images and the response properties of cortical cells").
    `aspect` > 1 stretches the features along x.
    """
    cells = [max(1.0, side / size) for side, size in zip(shape, (cell, cell * aspect), strict=True)]
    height, width = (math.ceil(count) + 2 for count in cells)
    # only this part of the grid is shown, at a random place, so that cells do not begin at the picture's corner
    seen = cells[0] / height, cells[1] / width
    field, total, scale = rng.standard_normal((height, width), np.float32), 1.0, 1.0
    for _ in range(octaves - 1):
        if height > shape[0]:
            break
        height, width, scale = 2 * height, 2 * width, scale * gain
        field = resized(field, (height, width)) + scale * rng.standard_normal((height, width), np.float32)
        total += scale * scale
    top, left = (1 - seen[0]) * rng.random() * height, (1 - seen[1]) * rng.random() * width
    box = (left, top, left + seen[1] * width, top + seen[0] * height)
    sampled = Image.fromarray(field).resize(shape[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(sampled) * np.float32(1.2 / math.sqrt(total))


def resized(field: np.ndarray, shape: Shape) -> np.ndarray:
    return np.asarray(Image.fromarray(field).resize(shape[::-1], Image.Resampling.BILINEAR))


def grain(rng: Rng, shape: Shape) -> np.ndarray:
    """White noise of deviation 1."""
    return rng.standard_normal(shape, np.float32)


def ramp(shape: Shape, angle: float) -> np.ndarray:
    """0…1 from one side of the picture to the other; `angle` in radians, 0 to the right, π/2 downwards."""
    y, x = grid(shape)
    field = x * math.cos(angle) + y * math.sin(angle)
    low, high = min(0, math.cos(angle)) + min(0, math.sin(angle)), max(0, math.cos(angle)) + max(0, math.sin(angle))
    return (field - np.float32(low)) * np.float32(1 / (high - low))


def spot(shape: Shape, y: float, x: float, radius: float) -> np.ndarray:
    """1 at (y, x) (fractions of height and width), falling off as a Gaussian of `radius` (fraction of the height)."""
    rows, columns = grid(shape)
    columns = (columns - np.float32(x)) * np.float32(shape[1] / shape[0])
    return np.exp(((rows - np.float32(y)) ** 2 + columns**2) * np.float32(-0.5 / radius**2))


def smoothstep(field: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, without a kink between."""
    t = np.clip((field - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def blurred(field: np.ndarray, radius: float) -> np.ndarray:
    """A field of 0…1 under a Gaussian blur of `radius` pixels, at a precision of 8 bits."""
    if radius < 0.3:
        return field
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    size, finer = image.size, 1
    while radius > 2 * finer and min(size) > 16 * finer:  # the blur hides that it was computed on a coarser grid
        finer *= 2
    if finer > 1:
        image = image.reduce(finer)
    image = image.filter(ImageFilter.GaussianBlur(radius / finer))
    if finer > 1:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32) * np.float32(1 / 255)


def flat(colour: np.ndarray, shape: Shape) -> np.ndarray:
    """A picture of one colour."""
    return np.broadcast_to(colour[:, None, None], (3, *shape)).astype(np.float32)


def between(first: np.ndarray, second: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A picture that goes from colour `first` [3] (field 0) to `second` (field 1)."""
    return first[:, None, None] + (second - first)[:, None, None] * field


def laid_over(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`above` (a picture, or a colour [3]) over the picture `below`, as far as `alpha` 0…1 says."""
    above = above[:, None, None] if above.ndim == 1 else above
    return below + (above - below) * alpha
