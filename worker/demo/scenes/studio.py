"""What a studio hangs up behind a product: plain colours, gradients, seamless paper."""

from __future__ import annotations

import math

import numpy as np

from worker.demo.scenes import palette
from worker.demo.scenes.fields import Rng, Shape, between, flat, grain, grid, ramp, smoothstep, spot
from worker.demo.scenes.words import word


def plain(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    colour, words = palette.shaded(rng, name)
    light = 1 + rng.uniform(0, 0.06) * (ramp(shape, rng.uniform(0, 2 * math.pi)) - 0.5)
    place = word(rng, "studio backdrop", "studio background", "backdrop", "background")
    return flat(colour, shape) * light, f"{word(rng, 'plain ', 'solid ', 'plain ', '')}{words} {place}"


def gradient(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """From a darker to a lighter tone of one colour; on average the colour itself."""
    colour, words = palette.shaded(rng, name)
    depth = rng.uniform(0.25, 0.55) * (0.5 if colour.min() > 0.75 else 1)
    dark, bright = colour * (1 - depth), colour + (1 - colour) * depth * 0.6
    if rng.random() < 0.4:  # a lamp behind the product
        field = spot(shape, rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.55))
    else:
        field = ramp(shape, rng.normal(-math.pi / 2 if rng.random() < 0.7 else math.pi / 2, 0.35))
    place = word(rng, "studio backdrop", "studio backdrop", "backdrop", "background", "studio background")
    picture = between(dark, bright, field)
    return picture + (colour - picture.mean(axis=(1, 2)))[:, None, None], f"{words} gradient {place}"


def two_colours(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """The colour named first is at the left, at the top, or in that corner."""
    (first, one), (second, two) = palette.shaded(rng, name), palette.shaded(rng, palette.pick(rng))
    field = smoothstep(ramp(shape, rng.uniform(0, math.pi / 2)), 0.05, 0.95)
    place = word(rng, "gradient backdrop", "gradient background", "gradient studio backdrop")
    return between(first, second, field), f"{one} to {two} {place}"


def paper(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    colour, words = palette.shaded(rng, name)
    y, _ = grid(shape)
    bend = rng.uniform(0.55, 0.8)  # where the paper turns from wall to floor
    light = 1 - rng.uniform(0.04, 0.16) * np.exp((y - bend) ** 2 * np.float32(-1 / rng.uniform(0.06, 0.16) ** 2))
    light = light * (1 + rng.uniform(-0.05, 0.1) * smoothstep(y, bend, 1)) + 0.008 * grain(rng, shape)
    place = word(rng, "backdrop", "background", "studio backdrop")
    return flat(colour, shape) * light, f"{words} seamless paper {place}"
