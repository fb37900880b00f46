"""Masks as arrays [height, width] of uint8: 255 where the picture may change and 0 elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from worker.images.raster import Raster, bands, eight_bits

Mask = NDArray[np.uint8]


def drawn(picture: Raster, *, black_edits: bool = False) -> Mask:
    """What is painted light (or with `black_edits` dark) in a mask's picture; its alpha does not count."""
    mask = np.empty((picture.height, picture.width), np.uint8)
    colours = picture.samples[..., :-1] if picture.form.alpha else picture.samples
    for top, bottom in bands(0, picture.height, picture.width):
        grey = eight_bits(colours[top:bottom])
        if picture.form.space == "grey":
            light = grey[..., 0] >= 128
        else:
            letters = "RGB" if picture.form.space == "rgb" else "CMYK"
            light = np.asarray(Image.fromarray(np.ascontiguousarray(grey), letters).convert("L")) >= 128
        mask[top:bottom] = np.where(light != black_edits, 255, 0)
    return mask


def transparent(picture: Raster) -> Mask:
    """The part of a mask's picture that is more transparent than not."""
    return _below(picture, picture.form.top // 2 + 1)


def not_opaque(picture: Raster) -> Mask:
    """The part of an image through which anything shines: its transparency, soft edges and shadows among it."""
    return _below(picture, picture.form.top)


def _below(picture: Raster, level: int) -> Mask:
    return np.where(picture.samples[..., -1] < level, np.uint8(255), np.uint8(0))


def filled(mask: Mask) -> Mask:
    """The mask and its holes: kept parts that the edited part encloses (a diagonal gap is no way out)."""
    places = ndimage.find_objects((mask > 0).astype(np.uint8))
    if not places:
        return mask
    part = mask[places[0]]
    labels, _ = ndimage.label(part == 0)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside = np.zeros(int(labels.max()) + 1, bool)
    outside[edge] = True
    outside[0] = True  # the mask itself
    result = mask.copy()
    result[places[0]] = np.where(outside[labels], part, 255)
    return result


def grown(mask: Mask, pixels: int) -> Mask:
    """The mask and all within `pixels` px of it, by chessboard distance."""
    if pixels <= 0:
        return mask
    for axis in (0, 1):
        mask = ndimage.maximum_filter1d(mask, 2 * pixels + 1, axis=axis, mode="nearest")
    return mask


def feather(mask: Mask, pixels: int) -> NDArray[np.float32]:
    """Paste alpha, 0 to 1: 0 outside `mask`, rising inward over `pixels` px of chessboard distance.

    It is min(d, pixels)/pixels at distance d from the outside, the mean of that many erosions; a mask thinner than the
    feather is still edited, only less. The picture's own edge is no outside: it has no seam, and no feather.
    """
    if pixels <= 1 or mask.all():
        return (mask > 0).astype(np.float32)
    distance = ndimage.distance_transform_cdt(mask, metric="chessboard")
    return np.minimum(distance, pixels).astype(np.float32) / np.float32(pixels)
