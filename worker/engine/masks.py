"""The mask's geometry: the region a crop must hold, the mask on the latent grid, and the paste that keeps the rest.

White (255, 1.0) is what is repainted, black is what stays.
"""

from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from worker.engine.errors import InvalidParameter

Box: TypeAlias = tuple[int, int, int, int]


def _grow(low: int, high: int, extra: int, limit: int) -> tuple[int, int]:
    """Widen [low, high) by `extra`, shifted inside [0, limit) where it sticks out, cut where it cannot fit."""
    low, high = low - extra // 2, high + extra - extra // 2
    if high >= limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)


def crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> Box:
    """(x1, y1, x2, y2): what the mask marks, `pad` pixels more on each side, widened to the ratio width : height.

    Raises InvalidParameter when the mask marks nothing.
    """
    marked = np.array(mask_image.convert("L")) != 0
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        raise InvalidParameter("mask_image", "must mark at least one pixel (white) when `padding_mask_crop` is given")
    limit_y, limit_x = marked.shape
    x1, x2 = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, limit_x)
    y1, y2 = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, limit_y)
    ratio = width / height
    if (x2 - x1) / (y2 - y1) > ratio:
        y1, y2 = _grow(y1, y2, int((x2 - x1) / ratio - (y2 - y1)), limit_y)
    else:
        x1, x2 = _grow(x1, x2, int((y2 - y1) * ratio - (x2 - x1)), limit_x)
    return x1, y1, x2, y2


def apply_overlay(
    mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
) -> Image.Image:
    """`image` (at `crop_coords` of `init_image`, or as large as it) with what the mask keeps laid over it. RGB.

    The kept part is premultiplied ("RGBa") while it is cut out, so that a soft mask does not darken its edge.
    """
    kept = Image.new("RGBa", init_image.size)
    kept.paste(init_image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    if crop_coords is not None:
        canvas = Image.new("RGBA", init_image.size)
        canvas.paste(image, crop_coords[:2])
        image = canvas.convert("RGB")
    image = image.convert("RGBA")
    image.alpha_composite(kept.convert("RGBA"))
    return image.convert("RGB")


def to_latent_grid(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``[B, 1, H, W]`` to ``[B, 1, height, width]`` by nearest neighbour: a latent cell is repainted or it is not."""
    return F.interpolate(mask, size=(height, width))
