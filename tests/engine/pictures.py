"""Pictures and masks made of formulas."""

import numpy as np
from PIL import Image


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, so that resizing and encoding have something to do."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + 2 * c) + seed) + np.cos(y / (5 + c) - seed) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 0.2, (height, width, 3))
    return Image.fromarray(((np.stack(waves, axis=-1) / 4 + 0.5 + noise).clip(0, 1) * 255).astype(np.uint8))


def hole(
    width: int = 64, height: int = 64, box: tuple[float, float, float, float] = (0.2, 0.3, 0.7, 0.8)
) -> Image.Image:
    """A mask with one white rectangle, its box in fractions of the size."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[int(box[1] * height) : int(box[3] * height), int(box[0] * width) : int(box[2] * width)] = 255
    return Image.fromarray(mask)
