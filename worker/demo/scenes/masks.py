"""What to repaint, 1, and what to keep, 0: as a catalogue asks for it, and in every other way, so that none is new."""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from worker.demo.scenes.fields import Rng, Shape, blurred

# What is repainted: everything around the product, the product, rectangles, strokes of a brush, everything.
KINDS: Final = {"around": 0.62, "product": 0.14, "boxes": 0.08, "strokes": 0.06, "all": 0.10}
_UP_TO: Final = np.cumsum(list(KINDS.values()))


def pick(rng: Rng) -> str:
    return tuple(KINDS)[int(np.searchsorted(_UP_TO, rng.random() * _UP_TO[-1]))]


def draw(rng: Rng, kind: str, product: np.ndarray) -> np.ndarray:
    """[h, w] uint8 of 0 and 1. `product` [h, w] in 0…1 is what the product covers; no mask is without a 1."""
    if kind == "around":
        # never outside of the outline: what would be kept there is the old backdrop, and tells the new one's colour
        mask = ~_resized(rng, product, 0.5, 0.93)
    elif kind == "product":
        mask = _resized(rng, product, 0.12, 0.7)
    elif kind == "boxes":
        mask = _boxes(rng, product.shape)
    elif kind == "strokes":
        mask = _strokes(rng, product.shape)
    else:
        mask = np.ones(product.shape, bool)
    return (mask if mask.any() else np.ones_like(mask)).astype(np.uint8)


def _resized(rng: Rng, product: np.ndarray, low: float, high: float) -> np.ndarray:
    """The product's outline, exact or some pixels beside it: nobody draws it exactly. 0.5 is on it, 1 far inside."""
    if rng.random() < 0.4:
        return product > 0.5
    return blurred(product, rng.uniform(1, 4)) > rng.uniform(low, high)


def _boxes(rng: Rng, shape: Shape) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 4)):
        height, width = (max(8, int(side * rng.uniform(0.2, 0.7))) for side in shape)
        top, left = rng.integers(shape[0] - height + 1), rng.integers(shape[1] - width + 1)
        mask[top : top + height, left : left + width] = True
    return mask


def _strokes(rng: Rng, shape: Shape) -> np.ndarray:
    canvas = Image.new("1", shape[::-1])
    pen, size = ImageDraw.Draw(canvas), min(shape)
    for _ in range(rng.integers(1, 5)):
        steps = rng.normal(0, size * 0.2, (rng.integers(3, 8), 2))
        path = rng.random(2) * shape[::-1] + np.cumsum(steps, axis=0)
        pen.line(path.ravel().tolist(), 1, int(size * rng.uniform(0.08, 0.2)), joint="curve")
    return np.asarray(canvas)
