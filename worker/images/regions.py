"""Which part of a picture goes through the model, and at which size."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log

import numpy as np
from PIL import Image

from worker.images import colour, masks
from worker.images.decoding import Source
from worker.images.raster import Form, Raster, eight_bits, on_white

Size = tuple[int, int]  # width, height in px
Box = tuple[int, int, int, int]  # left, top, right, bottom in px, right and bottom excluded

_BAND_PIXELS = 1 << 22
_LANCZOS_SUPPORT = 3


@dataclass(frozen=True)
class Region:
    """What the model gets: the box's pixels (sRGB) and the grown mask (L), both at the bucket's size.

    `pasted` is the mask of what may be pasted, at the source's size: the submitted one, or the grown one.
    """

    box: Box
    image: Image.Image
    mask: Image.Image
    pasted: masks.Mask


def choose_bucket(buckets: tuple[Size, ...], region: Size) -> Size:
    """The bucket nearest to the region in shape; among equals the smallest that does not shrink it, or the largest."""
    width, height = region

    def cost(bucket: Size) -> tuple[float, bool, int]:
        w, h = bucket
        shrinks = w < width and h < height
        return (round(abs(log(w / h) - log(width / height)), 2), shrinks, -w * h if shrinks else w * h)

    return min(buckets, key=cost)


def edit_box(mask: Image.Image, padding: int | None) -> Box:
    """The mask's bounding box with `padding` px around it, inside the picture; None: the whole picture."""
    if padding is None:
        return (0, 0, *mask.size)
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    )


def widen(box: Box, shape: Size, limits: Size) -> Box:
    """`box` made larger towards the proportions of `shape`, as far as a picture of size `limits` allows."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    want_width = min(max(width, round(height * shape[0] / shape[1])), limits[0])
    want_height = min(max(height, round(width * shape[1] / shape[0])), limits[1])
    left = min(max(left - (want_width - width) // 2, 0), limits[0] - want_width)
    top = min(max(top - (want_height - height) // 2, 0), limits[1] - want_height)
    return (left, top, left + want_width, top + want_height)


def cut(source: Source, bucket: Size, *, padding: int | None, grow: int, paste: str = "inner") -> Region:
    """The region of `source` around its mask at `bucket` size; the mask grown by `grow` px of that size.

    `paste` "grown" also lets that be pasted which the mask grows over, instead of the submitted mask alone.
    """
    box = widen(edit_box(source.mask, padding), bucket, source.image.size)
    image = Image.fromarray(np.ascontiguousarray(_shrunk(source.image, box, bucket)), "RGB")
    # A bucket pixel that holds part of an edited source pixel is edited: a thin mask does not vanish.
    small = np.asarray(source.mask.resize(bucket, Image.Resampling.BOX, box=box))
    mask = masks.grown(np.where(small > 0, np.uint8(255), np.uint8(0)), grow)
    pasted = source.edits if paste == "inner" else _grown(source, box, bucket, grow)
    return Region(box, image, Image.fromarray(mask, "L"), pasted)


def _grown(source: Source, box: Box, bucket: Size, grow: int) -> masks.Mask:
    left, top, right, bottom = box
    pasted = np.zeros_like(source.edits)
    scale = max((right - left) / bucket[0], (bottom - top) / bucket[1])
    pasted[top:bottom, left:right] = masks.grown(source.edits[top:bottom, left:right], round(grow * scale))
    return pasted


def _shrunk(picture: Raster, box: Box, bucket: Size) -> colour.Pixels:
    """The box in sRGB at the bucket's size, [height, width, 3]; resized a band at a time, in the picture's own colours.

    A band takes with it as many rows as the filter reaches, so it is the same as resizing the whole.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    scale = height / bucket[1]
    reach = _LANCZOS_SUPPORT * max(1.0, scale) + 1
    form = Form(picture.form.space, False, 8)
    small = np.empty((bucket[1], bucket[0], form.channels), np.uint8)
    rows = max(1, floor(_BAND_PIXELS / width / scale))
    for first in range(0, bucket[1], rows):
        last = min(first + rows, bucket[1])
        low, high = max(0, floor(first * scale - reach)), min(height, ceil(last * scale + reach))
        band = picture.samples[top + low : top + high, left:right]
        colours = np.ascontiguousarray(eight_bits(on_white(band, picture.form)))
        part = Image.fromarray(colours[..., 0] if form.channels == 1 else colours, form.mode)
        ends = (0, first * scale - low, width, min(last * scale - low, high - low))
        resized = part.resize((bucket[0], last - first), Image.Resampling.LANCZOS, box=ends)
        small[first:last] = np.asarray(resized).reshape(last - first, bucket[0], form.channels)
    return colour.to_srgb(small, form, picture.icc)
