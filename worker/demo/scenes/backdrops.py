"""Which backdrops there are, how often each comes up, in which colours; and how a surface becomes a table's top.

A painter takes (rng, shape, colour's name) and gives a picture [3, h, w], nominally in 0…1, and words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from worker.demo.scenes import materials, outdoors, palette, studio
from worker.demo.scenes.fields import Rng, Shape, between, flat, grid, laid_over, noise, smoothstep
from worker.demo.scenes.words import word

Painter = Callable[[Rng, Shape, str], tuple[np.ndarray, str]]


class Kind(NamedTuple):
    """`colours` None: every one. What is `level` can be a table's top as well as a wall."""

    weight: float
    paint: Painter
    colours: Sequence[str] | None = None
    level: bool = False


_STONES = ("white", "grey", "black", "green", "pink", "beige", "brown", "teal", "navy", "charcoal", "cream")
_HIDES = ("brown", "black", "red", "beige", "green", "navy", "white")

KINDS: Final[Mapping[str, Kind]] = {
    "plain": Kind(0.15, studio.plain),
    "gradient": Kind(0.19, studio.gradient),
    "two colours": Kind(0.08, studio.two_colours),
    "paper": Kind(0.09, studio.paper),
    "wood": Kind(0.10, materials.wood, tuple(materials.WOODS), level=True),
    "marble": Kind(0.08, materials.marble, _STONES, level=True),
    "fabric": Kind(0.07, materials.fabric),
    "tiles": Kind(0.06, materials.tiles),
    "slate": Kind(0.04, materials.slate, ("black", "charcoal", "grey", "navy"), level=True),
    "granite": Kind(0.01, materials.granite, ("grey", "black", "pink", "white"), level=True),
    "concrete": Kind(0.03, materials.concrete, ("grey", "white", "beige", "charcoal", "green", "pink", "blue")),
    "brick": Kind(0.02, materials.brick, ("red", "brown", "white", "grey")),
    "leather": Kind(0.01, materials.leather, _HIDES),
    "metal": Kind(0.01, materials.metal, ("silver", "gold", "copper", "bronze"), level=True),
    "bokeh": Kind(0.05, outdoors.bokeh, outdoors.LAMPS),
    "sky": Kind(0.04, outdoors.sky, outdoors.SKIES),
    "stars": Kind(0.02, outdoors.stars, ("navy", "purple", "blue")),
    "leaves": Kind(0.02, outdoors.leaves, ("green", "olive", "teal")),
    "grass": Kind(0.02, outdoors.grass, ("green",)),
    "sand": Kind(0.01, outdoors.sand, ("beige", "peach", "gold")),
    "snow": Kind(0.01, outdoors.snow, ("white",)),
    "water": Kind(0.01, outdoors.water, ("blue", "teal", "navy")),
}
_NAMES: Final = tuple(KINDS)
_UP_TO: Final = np.cumsum([kind.weight for kind in KINDS.values()]) / sum(kind.weight for kind in KINDS.values())
_NOUNS = frozenset({"fabric", "tiles", "concrete", "leather"})  # what may be called a backdrop, or nothing


def paint(rng: Rng, shape: Shape, kind: str | None = None, colour: str | None = None) -> tuple[np.ndarray, str]:
    """A backdrop [3, h, w], nominally in 0…1, and its phrase; kind and colour are drawn where they are not given."""
    kind = _NAMES[int(np.searchsorted(_UP_TO, rng.random()))] if kind is None else kind
    entry = KINDS[kind]
    colour = palette.pick(rng, entry.colours) if colour is None else colour
    picture, phrase = entry.paint(rng, shape, colour)
    if entry.level:
        if rng.random() < 0.5:
            picture = _table_top(rng, picture)
            return picture, phrase + word(rng, " table top", " table top", " table", " shelf")
        return picture, phrase + word(rng, " backdrop", " background", " surface", " table top", "")
    if kind in _NOUNS:
        phrase += word(rng, " backdrop", " background", "", " wall" if kind in ("tiles", "concrete") else " surface")
    return picture, phrase


def _table_top(rng: Rng, surface: np.ndarray) -> np.ndarray:
    """The surface seen from the side, as far as a horizon, and a wall out of focus behind it."""
    shape = surface.shape[1:]
    y, _ = grid(shape)
    horizon = rng.uniform(0.25, 0.55)
    depth = np.clip((y[:, 0] - horizon) / (1 - horizon), 0, 1)
    eye = rng.uniform(0.15, 0.5)  # the smaller, the steeper the foreshortening
    row = (shape[0] - 1) * (1 - eye * (1 / (eye + depth * (1 - eye)) - 1) / (1 - eye))
    table = surface[:, np.clip(row, 0, shape[0] - 1).astype(np.int32)]
    colour = palette.any_colour(rng) * 0.4 + rng.uniform(0.25, 0.6)
    wall = between(colour * np.float32(0.8), np.clip(colour * 1.1, 0, 1), y + 0.2 * noise(rng, shape, 50, 2))
    edge = rng.uniform(0.006, 0.03)
    return laid_over(flat(np.zeros(3, np.float32), shape) + wall, table, smoothstep(y, horizon - edge, horizon + edge))
