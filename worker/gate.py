"""The quality gate: what can be seen to be wrong with a painted picture without knowing what it should show.

Pure functions over three pictures of the same size: what the model was given, what it was to paint, what it painted
(before that is pasted into the source). All differences are in 8-bit levels, 0–255. P is the painted picture, S the
source, M the mask as it was submitted, G the mask as the model saw it (M grown):

    blank          the share of M where P is black (no channel above 4) or not finite
    unchanged      the share of M's textured pixels where no channel of P differs from S by more than 2. Textured is
                   where S differs by more than 8 levels from a neighbour: white painted white is no failure, and
                   where less than 1 % of M is textured nothing is said (0)
    seam           the step that pasting makes along M's edge where the edit has to go on with what is around it: where
                   S itself has next to no step there. Over 8 × 8 tiles of the region: how much more than S's own step
                   of colour (between the means of the 4 pixels inside M's edge and of the 4 outside) is the one from P
                   inside to S outside, in the worst channel; of that the mean over the tiles where S's is up to 10.
                   Nothing is said (0) where M's edge is an outline, at which any step may be right: where such tiles
                   are less than a quarter of the edge, or M holds more than half of the region's frame (a backdrop)
    colour_shift   what the model did to what it was to leave as it was, further than one latent cell (8 pixels) from G,
                   as nearer by it mixes both: the mean over the tiles of |mean of P − S| of the worst channel; nothing
                   is said (0) where less than 1 % of the region lies so far away

The limits are settings (FARM_GATE_…); a picture at its limit passes. Measured on the demo's edits (new backdrops, parts
of another colour) and on retouches: boxes and strokes across photographs and scenes, filled with what was there, as the
demo's autoencoder gives it back; good, and spoilt on purpose (`tests/quality/test_gate.py` measures it anew):

    painted                                        cases   seam, least / median / most   colour_shift   marked
    edits, as they are                                48              0 /  0 /   0         0 / 11 /  25      0
    edits, noise instead                              48              0 /  0 /   0         0 / 73 / 112     38
    edits, grey instead                               48              0 /  0 /   0         0 / 72 / 110     38
    retouches, as they are                            64              0 /  4 /   9         3 /  6 /   9      0
    retouches, redder by 25 in the mask               64              0 / 20 /  34         3 /  6 /   9     57
    retouches, redder by 25 everywhere                64              0 / 20 /  34        16 / 24 /  33     58
    retouches, a quarter darker everywhere            64              0 / 32 /  63         4 / 38 /  65     58
    retouches, a stranger's picture in the mask       64              0 / 89 / 222         3 /  6 /   9     57
    retouches, noise instead                          64              0 / 73 / 122        18 / 74 / 117     63

What is not marked of these has an edge where nothing goes on, or next to nothing that was to be left as it was.

What the scores cannot see (a third hand, a wrong word) is for people: `farm report`. A thing that is painted into a
smooth place and fills its mask to the edge looks like a seam, and is marked: leave some room around it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from farm.config import Settings
from farm.schemas import Scores
from worker.images import masks

_BLACK = 4  # levels
_SAME = 2  # levels: less than what a VAE adds by itself
_TEXTURE = 8  # levels
_LEAST_TEXTURED = 0.01  # of the mask
_TILES = 8  # along each side
_LEAST_IN_TILE = 16  # pixels
_BAND = 4  # pixels, on each side of the mask's edge
_SMOOTH = 10.0  # levels: a step of the source that is no edge
_LEAST_SMOOTH = 0.25  # of the mask's edge
_BACKDROP = 0.5  # of the region's frame
_LATENT_CELL = 8  # pixels
_LEAST_FAR = 0.01  # of the region

Picture = Image.Image | npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """The most that each score may be."""

    blank: float = 0.98
    unchanged: float = 0.98
    seam: float = 12.0
    colour_shift: float = 30.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(*(getattr(settings, f"gate_{limit.name}") for limit in fields(cls)))


def judge(
    source: Picture,
    mask: Image.Image,
    painted: Picture,
    *,
    grown: Image.Image | None = None,
    limits: Limits | None = None,
) -> Scores:
    """The scores of `painted`, 0 for flawless.

    `source` and `painted` are RGB, [height, width, 3] as arrays (of which `painted` may be float and not finite);
    `mask` and `grown` are L, edited from 128 up; `grown` is the mask that the model saw, `mask` where it is None.
    """
    inside = np.asarray(mask) >= 128
    seen = inside if grown is None else (np.asarray(grown) >= 128) | inside
    before, after = _floats(source), _floats(painted)
    finite = np.isfinite(after).all(axis=2)
    after = np.nan_to_num(after, nan=0.0, posinf=255.0, neginf=0.0)
    found = {
        "blank": _blank(after, finite, inside),
        "unchanged": _unchanged(before, after, inside),
        "seam": _seam(before, after, inside),
        "colour_shift": _colour_shift(before, after, seen),
    }
    limits = limits or Limits()
    worst = max(score / getattr(limits, name) for name, score in found.items())
    return Scores(**{name: round(score, 4) for name, score in found.items()}, worst=round(worst, 4))


def accept(scores: Scores, limits: Limits) -> bool:
    """Whether none of the scores is above its limit."""
    return all(getattr(scores, limit.name) <= getattr(limits, limit.name) for limit in fields(limits))


def _floats(picture: Picture) -> Floats:
    return np.asarray(picture, dtype=np.float32)


def _blank(after: Floats, finite: Bools, inside: Bools) -> float:
    return _share((after.max(axis=2) <= _BLACK) | ~finite, inside)


def _unchanged(before: Floats, after: Floats, inside: Bools) -> float:
    textured = inside & _textured(before)
    if textured.sum() < max(1.0, _LEAST_TEXTURED * inside.sum()):
        return 0.0
    return _share(np.abs(after - before).max(axis=2) <= _SAME, textured)


def _textured(picture: Floats) -> Bools:
    found = np.zeros(picture.shape[:2], dtype=np.bool_)
    for axis in (0, 1):
        first, second = _neighbours(axis)
        steps = np.abs(picture[first] - picture[second]).max(axis=2) > _TEXTURE
        found[first] |= steps
        found[second] |= steps
    return found


def _share(which: Bools, of: Bools) -> float:
    return float(which[of].mean()) if of.any() else 0.0


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a pixel and its next one along `axis` are, for all pixels at once."""
    low, high = slice(None, -1), slice(1, None)
    return ((low,), (high,)) if axis == 0 else ((slice(None), low), (slice(None), high))


def _seam(before: Floats, after: Floats, inside: Bools) -> float:
    frame = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    if frame.mean() > _BACKDROP:
        return 0.0
    within, beside = inside & _widened(~inside, _BAND), ~inside & _widened(inside, _BAND)
    (kept, outer), (own, inner), (painted, _) = (
        _tiles(picture, where) for picture, where in ((before, beside), (before, within), (after, within))
    )
    edge = np.where(np.minimum(inner, outer) >= _LEAST_IN_TILE, np.minimum(inner, outer), 0)
    step = np.abs(own - kept).max(axis=1)
    smooth = np.where(step <= _SMOOTH, edge, 0)
    if not smooth.sum() or smooth.sum() < _LEAST_SMOOTH * edge.sum():
        return 0.0
    return float(np.average((np.abs(painted - kept).max(axis=1) - step).clip(0), weights=smooth))


def _colour_shift(before: Floats, after: Floats, seen: Bools) -> float:
    far = ~_widened(seen, _LATENT_CELL)
    shifts, counts = _tiles(after - before, far)
    enough = counts >= _LEAST_IN_TILE
    if far.mean() < _LEAST_FAR or not enough.any():
        return 0.0
    return float(np.abs(shifts[enough]).max(axis=1).mean())


def _tiles(picture: Floats, where: Bools) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The mean colour of each tile's pixels in `where`, [tiles, 3], and how many these are."""
    height, width = where.shape
    rows, columns = np.nonzero(where)
    tiles = rows * _TILES // height * _TILES + columns * _TILES // width
    counts = np.bincount(tiles, minlength=_TILES**2)
    colours = picture[rows, columns]
    sums = np.stack([np.bincount(tiles, colours[:, c], minlength=_TILES**2) for c in range(3)], axis=1)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32), counts


def _widened(mask: Bools, pixels: int) -> Bools:
    return masks.grown(mask.astype(np.uint8), pixels) > 0
