"""Does the backdrop come in the colour that was asked for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from worker.demo.quality.painter import SEED, Order, Painter
from worker.demo.scenes import make_scene
from worker.demo.scenes.palette import MAIN, nearest_name
from worker.demo.training.data import series

PHRASES: Final = ("plain {} studio backdrop", "{} gradient studio backdrop", "{} seamless paper backdrop")
CASES: Final = 100


class ColourCase(NamedTuple):
    asked: str
    order: Order


def colour_cases(count: int = CASES, *, first: int = 0, shape: tuple[int, int] = (128, 128)) -> list[ColourCase]:
    """Products on any backdrop, which is to become one of another colour: the twelve main ones in turn.

    Every phrase meets every colour, since a colour's turn comes with the next phrase each time.
    """
    names, cases = tuple(MAIN), []
    for number in range(first, first + count):
        asked = names[number % len(names)]
        phrase = PHRASES[(number + number // len(names)) % len(PHRASES)]
        scene = make_scene(series(SEED, "quality"), number, shape, mask="around")
        cases.append(ColourCase(asked, Order(scene, phrase.format(asked), seed=number)))
    return cases


def colour_found(order: Order, painted: np.ndarray) -> str:
    """The main colour that the mean of what was repainted is nearest to, by distance in L*a*b*."""
    return nearest_name(painted[:, order.scene.mask > 0].mean(axis=1))


def colour_hits(cases: Sequence[ColourCase], painted: np.ndarray) -> list[bool]:
    return [colour_found(case.order, picture) == case.asked for case, picture in zip(cases, painted, strict=True)]


def paint_colours(painter: Painter, cases: Sequence[ColourCase]) -> np.ndarray:
    return painter.paint([case.order for case in cases])
