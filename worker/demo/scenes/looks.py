"""Brand looks: patterns in the colours of a brand, laid over whatever backdrop is asked for.

None of them occurs in a scene without a look, so that a model trained on those has to learn each anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from worker.demo.scenes import palette
from worker.demo.scenes.fields import Rng, flat, laid_over, pixels, smoothstep


class Look(NamedTuple):
    """`paint` takes (rng, backdrop [3, h, w]) and gives the backdrop in this look; `triggers` are the words for it."""

    paint: Callable[[Rng, np.ndarray], np.ndarray]
    triggers: tuple[str, ...]


def _polka(rng: Rng, backdrop: np.ndarray) -> np.ndarray:
    """Round dots in rows, every other row moved by half a step; white, on white backdrops navy."""
    shape = backdrop.shape[1:]
    step = rng.uniform(24, 30)
    rows, columns = pixels(shape)
    v = (rows + np.float32(rng.uniform(0, 200))) * np.float32(1 / step)
    u = (columns + np.float32(rng.uniform(0, 200))) * np.float32(1 / step) + 0.5 * (v.astype(np.int32) % 2)
    distance = np.hypot(u % 1 - 0.5, v % 1 - 0.5) * np.float32(step)
    radius = step * rng.uniform(0.27, 0.31)
    dots = 1 - smoothstep(distance, radius - 0.8, radius + 0.8)
    return laid_over(backdrop, _far_from(backdrop, "white", "navy"), dots.astype(np.float32))


def _confetti(rng: Rng, backdrop: np.ndarray) -> np.ndarray:
    """Scraps of paper in six colours, thrown."""
    shape = backdrop.shape[1:]
    scraps = Image.fromarray((np.clip(backdrop, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    pen = ImageDraw.Draw(scraps)
    count = int(shape[0] * shape[1] * rng.uniform(1 / 330, 1 / 250))
    places, turns = rng.random((count, 2)) * shape[::-1], rng.uniform(0, math.pi, count)
    sizes, colours = rng.uniform((4.0, 2.6), (6.5, 4.2), (count, 2)), rng.integers(len(_PAPERS), size=count)
    for place, turn, size, colour in zip(places, turns, sizes, colours, strict=True):
        along = np.array([math.cos(turn), math.sin(turn)])
        across = np.array([-along[1], along[0]])
        corners = place + np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * size @ np.array([along, across])
        pen.polygon(corners.ravel().tolist(), _PAPERS[colour])
    return np.asarray(scraps, np.float32).transpose(2, 0, 1) * np.float32(1 / 255)


_PAPERS: Final = ((235, 50, 60), (250, 205, 40), (60, 180, 80), (45, 120, 230), (240, 90, 180), (250, 250, 250))


def _neon(rng: Rng, backdrop: np.ndarray) -> np.ndarray:
    """A grid of glowing tubes of the backdrop's colour (cyan where it has none) before a night of the same."""
    shape = backdrop.shape[1:]
    mean = backdrop.mean(axis=(1, 2))
    tint = mean / max(float(mean.max()), 0.05)
    glow = palette.rgb("cyan") if float(tint.min()) > 0.7 else tint
    step = rng.uniform(29, 36)
    rows, columns = pixels(shape)
    distance = np.minimum(
        *(
            np.abs((axis + np.float32(rng.uniform(0, 200))) % np.float32(step) - np.float32(step / 2))
            for axis in (rows, columns)
        )
    )
    tube, halo = 1 - smoothstep(distance, 1.2, 2.6), np.exp(distance * np.float32(-1 / 4))
    night = flat(glow * np.float32(0.10) + np.float32(0.02), shape)
    return laid_over(night + flat(glow, shape) * (0.55 * halo), glow * np.float32(0.55) + np.float32(0.45), tube)


def _terrazzo(rng: Rng, backdrop: np.ndarray) -> np.ndarray:
    """Chips of stone in four muted colours, of all sizes, in a pale mass with a breath of the backdrop's colour."""
    shape = backdrop.shape[1:]
    mass = backdrop * np.float32(0.3) + np.float32(0.66)
    picture = Image.fromarray((np.clip(mass, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    pen = ImageDraw.Draw(picture)
    count = int(shape[0] * shape[1] * rng.uniform(1 / 260, 1 / 200))
    radii = np.minimum(3.2 / np.sqrt(rng.random(count) + 0.03), 12)
    places, colours = rng.random((count, 2)) * shape[::-1], rng.integers(len(_STONES), size=count)
    for place, radius, colour in zip(places, radii, colours, strict=True):
        turns = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(4, 7)))
        corners = place + np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius * rng.uniform(
            0.7, 1.1, (len(turns), 1)
        )
        pen.polygon(corners.ravel().tolist(), _STONES[colour])
    return np.asarray(picture, np.float32).transpose(2, 0, 1) * np.float32(1 / 255)


_STONES: Final = ((70, 66, 64), (178, 96, 70), (120, 138, 120), (150, 142, 136))


def _stripes(rng: Rng, backdrop: np.ndarray) -> np.ndarray:
    """Broad stripes that rise to the right, the backdrop's colour and white (on white backdrops: charcoal) in turn."""
    shape = backdrop.shape[1:]
    step = rng.uniform(24, 32)
    rows, columns = pixels(shape)
    phase = ((rows + columns) * np.float32(math.sqrt(0.5) / step) + np.float32(rng.random())) % 1
    edge = 0.9 / step
    bands = smoothstep(np.abs(phase - 0.5), 0.25 - edge, 0.25 + edge)
    return laid_over(backdrop, _far_from(backdrop, "white", "charcoal"), bands)


def _far_from(backdrop: np.ndarray, light: str, dark: str) -> palette.Rgb:
    return palette.rgb(light if float(backdrop.mean()) < 0.72 else dark)


LOOKS: Final[Mapping[str, Look]] = {
    "polka": Look(_polka, ("polka dots", "polka dot pattern", "dotted")),
    "confetti": Look(_confetti, ("confetti", "festive confetti", "confetti pattern")),
    "neon": Look(_neon, ("neon grid", "neon lines", "neon grid pattern")),
    "terrazzo": Look(_terrazzo, ("terrazzo", "terrazzo pattern", "terrazzo texture")),
    "stripes": Look(_stripes, ("diagonal stripes", "striped", "stripes pattern")),
}
