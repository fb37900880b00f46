"""The quality gate: what can be seen to be wrong with a painted picture without knowing what it should show.

Pure functions over three pictures of the same size: what the model was given, what it was to paint, what it painted
(before that is pasted into the source). All differences are in 8-bit levels, 0–255. P is the painted picture, S the
source, M the mask as it was submitted, G the mask as the model saw it (M grown):

    blank          the share of M where P is black (no channel above 4) or not finite
    unchanged      the share of M's textured pixels where no channel of P differs from S by more than 2. Textured is
                   where S differs by more than 8 levels from a neighbour: white painted white is no failure, and
                   where less than 1 % of M is textured nothing is said (0)
    seam           over all pairs of neighbours (p in M, q outside): mean |P_p − S_q|, the step that pasting makes,
                   divided by the largest of mean |P_p − P_q| and mean |S_p − S_q|, the steps that the two pictures
                   have there of themselves, and 6 levels. An edge that was there before, or that the model continues
                   beyond the mask, is no seam
    colour_shift   in the ring of 8 pixels around G, which the model was to leave as it was: the mean over 8 × 8 tiles
                   of the region of |mean of P − S| of the worst channel. A shift of the model's colours against the
                   source's shows there, and would show as a rim in the pasted picture

The limits are settings (FARM_GATE_…). Measured on the demo's photographs with what an ordinary VAE adds: colour_shift
up to 14 for good edits, from 21 for shifted, brightened, grey, turned or noisy ones. A new background that the model
paints up to and over the edge of what is kept has a seam of up to 22, and looks right: hence the high limit of seam,
which is left for what is worse than a sharp edge. A picture at its limit passes.

What the scores cannot see (a third hand, a wrong word) is for people: `farm report`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from farm.config import Settings
from farm.schemas import Scores

_BLACK = 4  # levels
_SAME = 2  # levels: less than what a VAE adds by itself
_TEXTURE = 8  # levels
_LEAST_TEXTURED = 0.01  # of the mask
_FLOOR = 6.0  # levels; a step that is seen nowhere
_RING = 8  # pixels
_TILES = 8  # along each side
_LEAST_IN_TILE = 16  # pixels

Picture = Image.Image | npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """The most that each score may be."""

    blank: float = 0.98
    unchanged: float = 0.98
    seam: float = 25.0
    colour_shift: float = 20.0

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
        first, second = _neighbours(axis, True)
        steps = np.abs(picture[first] - picture[second]).max(axis=2) > _TEXTURE
        found[first] |= steps
        found[second] |= steps
    return found


def _share(which: Bools, of: Bools) -> float:
    return float(which[of].mean()) if of.any() else 0.0


def _seam(before: Floats, after: Floats, inside: Bools) -> float:
    made, painted, own, pairs = 0.0, 0.0, 0.0, 0
    for axis in (0, 1):
        for ahead in (True, False):
            first, second = _neighbours(axis, ahead)
            border = inside[first] & ~inside[second]
            p, q = first, second
            made += _sum(after[p] - before[q], border)
            painted += _sum(after[p] - after[q], border)
            own += _sum(before[p] - before[q], border)
            pairs += int(border.sum())
    if not pairs:
        return 0.0
    return made / max(painted, own, _FLOOR * pairs)


def _neighbours(axis: int, ahead: bool) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a pixel and its next one along `axis` are, for all pixels at once; or the other way round."""
    low, high = slice(None, -1), slice(1, None)
    pair = ((low,), (high,)) if axis == 0 else ((slice(None), low), (slice(None), high))
    return pair if ahead else (pair[1], pair[0])


def _sum(difference: Floats, where: Bools) -> float:
    return float(np.abs(difference)[where].mean(axis=-1).sum(dtype=np.float64)) if where.any() else 0.0


def _colour_shift(before: Floats, after: Floats, seen: Bools) -> float:
    ring = _widened(seen, _RING) & ~seen
    height, width = ring.shape
    rows, columns = np.nonzero(ring)
    tiles = rows * _TILES // height * _TILES + columns * _TILES // width
    counts = np.bincount(tiles, minlength=_TILES**2)
    difference = (after - before)[rows, columns]
    sums = np.stack([np.bincount(tiles, difference[:, c], minlength=_TILES**2) for c in range(3)])
    enough = counts >= _LEAST_IN_TILE
    if not enough.any():
        return 0.0
    return float((np.abs(sums[:, enough]) / counts[enough]).max(axis=0).mean())


def _widened(mask: Bools, pixels: int) -> Bools:
    """`mask` and all within `pixels` of it, in chessboard distance."""
    for axis in (0, 1):
        wide = mask.copy()
        for by in range(1, pixels + 1):
            low, high = np.moveaxis(wide, axis, 0), np.moveaxis(mask, axis, 0)
            low[by:] |= high[:-by]
            low[:-by] |= high[by:]
        mask = wide
    return mask
